"""What Synthward uses of Flower's internals, held to the installed version.

A release of Flower that breaks one of these is not to be allowed by pyproject.toml.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]


def _parameters(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_installed_flower_is_one_that_was_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {
        line.partition("flwr")[2].removeprefix("[simulation]")
        for line in [*project["dependencies"], *project["optional-dependencies"]["ray"]]
        if line.startswith("flwr")
    }
    assert pins == {">=1.41,<1.43"}
    assert SpecifierSet(pins.pop()).contains(version("flwr"))


def _functions():
    from flwr.app.message.message import make_message, remove_content_from_message
    from flwr.app.metadata import Metadata
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
    from flwr.supercore.inflatable import inflatable_object as objects
    from flwr.supercore.inflatable import inflatable_protobuf_utils as transfers
    from flwr.supercore.inflatable import inflatable_utils as pulls
    from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
    from flwr.supercore.primitives import asymmetric
    from flwr.supercore.protobuf.client import ProtobufClient
    from flwr.superlink.federation import NoOpFederationManager
    from flwr.superlink.servicer.fleet import fleet_handlers as handlers
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    state, store = InMemoryLinkState, InMemoryObjectStore
    metadata = ["run_id", "message_id", "src_node_id", "dst_node_id", "reply_to_message_id"]
    metadata += ["group_id", "created_at", "ttl", "message_type", "src_task_id", "dst_task_id"]
    run = ["fab_id", "fab_version", "fab_hash", "override_config", "federation_id"]
    run += ["federation_config", "flwr_aid", "primary_task_type"]
    moved = ["node", "run_id"]
    return [
        (Metadata, metadata),
        (make_message, ["metadata", "content", "error"]),
        (remove_content_from_message, ["message"]),
        (message_from_proto, ["message_proto"]),
        (message_to_proto, ["message"]),
        (state, ["federation_manager", "object_store"]),
        (NoOpFederationManager, ["simulation"]),
        (state.create_run, run),
        (state.get_run_info, ["run_ids"]),
        (state.claim_task, ["task_id"]),
        (state.activate_task, ["task_id"]),
        (state.create_node, ["owner_aid", "owner_name", "public_key", "heartbeat_interval"]),
        (state.activate_node, ["node_id", "heartbeat_interval"]),
        (state.deactivate_node, ["node_id"]),
        (state.get_node_id_by_public_key, ["public_key"]),
        (state.get_node_info, ["node_ids", "owner_aids", "statuses"]),
        (state.store_message_ins, ["message"]),
        (state.delete_messages, ["message_ins_ids"]),
        (state.delete_sessions_in_run, ["run_id"]),
        (store, ["verify"]),
        (store.preregister, ["run_id", "object_tree"]),
        (store.put, ["object_id", "object_content"]),
        (store.get, ["object_id"]),
        (store.delete, ["object_id"]),
        (objects.get_object_tree, ["obj"]),
        (objects.get_all_nested_objects, ["obj"]),
        (objects.iterate_object_tree, ["tree"]),
        (objects.get_object_body, ["object_content", "cls"]),
        (objects.get_object_head_values_from_object_content, ["object_content"]),
        (objects.is_valid_sha256_hash, ["object_id"]),
        (objects.no_object_id_recompute, []),
        (transfers.make_pull_object_fn_protobuf, ["pull_object_protobuf", *moved]),
        (transfers.make_push_object_fn_protobuf, ["push_object_protobuf", *moved, "session_id"]),
        (
            transfers.make_confirm_message_received_fn_protobuf,
            ["confirm_message_received_protobuf", *moved],
        ),
        (
            pulls.pull_and_inflate_object_from_tree,
            ["object_tree", "pull_object_fn", "confirm_object_received_fn", "return_type"],
        ),
        (pulls.push_objects, ["objects", "push_object_fn", "object_ids_to_push"]),
        (asymmetric.public_key_to_bytes, ["public_key"]),
        (asymmetric.bytes_to_public_key, ["public_key_bytes"]),
        (asymmetric.verify_signature, ["public_key", "message", "signature"]),
        (handlers.activate_node, ["request", "state"]),
        (handlers.deactivate_node, ["request", "state"]),
        (handlers.send_node_heartbeat, ["request", "state"]),
        (handlers.pull_messages, ["request", "state", "store"]),
        (handlers.push_messages, ["request", "state"]),
        (handlers.pull_object, ["request", "state"]),
        (handlers.push_object, ["request", "state"]),
        (handlers.confirm_message_received, ["request", "state", "store"]),
        (NodeAuthHttpInterceptor, ["private_key", "public_key"]),
        (NodeAuthHttpInterceptor.intercept, ["context", "call_next"]),
        (ProtobufClient._send, ["context", "stream"]),
    ]


@pytest.mark.parametrize(
    ("function", "parameters"), _functions(), ids=lambda x: getattr(x, "__qualname__", "")
)
def test_functions_keep_their_parameters(function, parameters) -> None:
    assert _parameters(function)[: len(parameters)] == parameters


def test_the_fleet_api_keeps_its_routes_and_requests() -> None:
    from fastapi.routing import APIRoute
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
    from flwr.superlink.routers.fleet.router import router

    from synth_common.flower.fleet import ROUTES

    served = {route.path for route in router.routes if isinstance(route, APIRoute)}
    closed = {f"/v1/fleet/{x}" for x in ("register-node", "unregister-node", "get-run", "get-fab")}
    assert served == set(ROUTES) | closed, (
        "a new route of Flower's must be let in or kept out on purpose"
    )
    fields = {
        "activate-node": {"public_key", "heartbeat_interval"},
        "deactivate-node": {"node_id"},
        "send-node-heartbeat": {"node", "heartbeat_interval"},
        "pull-messages": {"node"},
        "push-messages": {"node", "messages_list", "message_object_trees"},
        "pull-object": {"node", "run_id", "object_id"},
        "push-object": {"node", "run_id", "object_id", "object_content", "session_id"},
        "confirm-message-received": {"node", "run_id", "message_object_id"},
    }
    for name, wanted in fields.items():
        request = PROTOBUF_REQUEST_TYPES["POST", f"/v1/fleet/{name}"]
        assert request is ROUTES[f"/v1/fleet/{name}"].kind
        assert wanted <= set(request.DESCRIPTOR.fields_by_name), name


def test_every_error_of_the_fleet_api_has_a_status() -> None:
    from flwr.supercore.error import ApiErrorCode
    from flwr.supercore.error.catalog import API_ERROR_MAP

    for code in ApiErrorCode:
        if code.name.startswith("FLEET_"):
            assert API_ERROR_MAP[code].public_message
            assert 400 <= API_ERROR_MAP[code].http_status_code < 600


def test_constants_that_both_ends_agree_on() -> None:
    from flwr.common import constant
    from flwr.supercore import constant as core

    assert constant.HEARTBEAT_PATIENCE == 2
    assert (constant.HEARTBEAT_MIN_INTERVAL, constant.HEARTBEAT_MAX_INTERVAL) == (10, 1800)
    assert (constant.TIMESTAMP_TOLERANCE, constant.SYSTEM_TIME_TOLERANCE) == (300, 5)
    assert constant.TIMESTAMP_HEADER == "flwr-timestamp"
    assert core.FLEET_HTTP_PUBLIC_KEY_HEADER == "flwr-public-key"
    assert core.FLEET_HTTP_SIGNATURE_HEADER == "flwr-signature"


def test_tensors_travel_in_pieces_of_one_mebibyte() -> None:
    program = (
        "import synth_common.flower; from flwr.common import constant;"
        "print(constant.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert int(told.stdout) == 2**20


def test_the_client_has_the_attributes_that_ours_sets() -> None:
    from flwr.supercore.protobuf.client import ProtobufClient

    client = ProtobufClient("https://hub")
    assert set(vars(client)) == {"_base_url", "_interceptors", "_retry_invoker", "_client"}
    client.close()


def test_a_run_without_a_token_goes_on_and_the_state_keeps_the_message_it_is_given() -> None:
    from flwr.app import Message, RecordDict
    from flwr.app.message.message import make_message
    from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
    from flwr.superlink.federation import NoOpFederationManager

    from synth_common.flower.link import _addressed, _open_run
    from synth_common.flower.spool import Spool, SpooledStore

    state = InMemoryLinkState(NoOpFederationManager(), SpooledStore(Spool()))
    run = _open_run(state)
    assert run.status.status == "running"
    assert not state.task_token_store
    assert not state.task_token_to_task_id
    node = state.create_node("", "", b"key", 0)
    state.activate_node(node, 10)
    metadata = _addressed(Message(RecordDict(), node, "train"), run.run_id)
    message = make_message(metadata, content=RecordDict())
    message.metadata.__dict__["_message_id"] = "id"
    assert state.store_message_ins(message) == "id"
    assert state.get_message_ins(node, 1)[0] is message
    assert state.get_message_ins(node, 1) == []
    message.metadata.delivered_at = ""
    assert state.get_message_ins(node, 1)[0] is message


def test_nothing_else_imports_flowers_internals() -> None:
    public = ("flwr.app", "flwr.clientapp", "flwr.serverapp")
    for package in ("synth_common", "synth_client", "synth_server", "synth_sim"):
        for path in Path(str(files(package))).rglob("*.py"):
            if "flower" in path.parts:
                continue
            for line in path.read_text().splitlines():
                words = line.split()
                if words[:1] in (["from"], ["import"]) and words[1].startswith("flwr"):
                    assert words[1] in public, f"{path}: {line}"
