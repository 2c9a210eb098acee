"""A systemd unit for a site's service, with as few rights as it needs.

The service dials out and writes into its own folder; it listens nowhere and needs no
privilege. ``systemd-analyze security`` rates the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synth_common.errors import ConfigError
from synth_common.reporting.files import filled

_UNIT = """[Unit]
Description=Synthward site @NAME@
Wants=network-online.target time-sync.target
After=network-online.target time-sync.target

[Service]
Type=exec
User=@USER@
ExecStart="@PROGRAM@" start --site @NAME@ --home "@HOME@"
Environment=PYTHONUNBUFFERED=1

# A first signal lets the round in hand finish, because it is paid for; give it a whole round.
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec=@PATIENCE@

# Connections that break are the service's own business; what ends it for good is a decision
# (settings, privacy, ledger, enrolment, the coordinator's refusal), which no restart changes.
Restart=on-failure
RestartSec=30
RestartPreventExitStatus=2 3 4 5 6 12 15 16 19 130

UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths="@DIRECTORY@"
PrivateTmp=yes
@DEVICES@
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""
_NO_DEVICES = "PrivateDevices=yes"
_GPU = (
    "DevicePolicy=closed\n"
    "DeviceAllow=/dev/nvidiactl rw\n"
    "DeviceAllow=/dev/nvidia-uvm rw\n"
    "DeviceAllow=char-nvidia rw\n"
    "DeviceAllow=char-nvidia-uvm rw"
)


@dataclass(frozen=True)
class Service:
    """What a unit is written for.

    Attributes:
        name: The site.
        home: Folder that holds ``sites/NAME``.
        user: Runs the service, and owns the folder.
        program: ``synth-client``, absolute.
        gpu: Whether it may use an NVIDIA GPU.
        patience: Seconds that a round may take (``federation.round_timeout_s``).
    """

    name: str
    home: Path
    user: str
    program: Path
    gpu: bool
    patience: float


def systemd_unit(service: Service) -> str:
    """The unit's text.

    Raises:
        ConfigError: A path that systemd would read as something else.
    """
    home, program = service.home.absolute(), service.program.absolute()
    for path in (home, program):
        if any(sign in str(path) for sign in '"\\%$\n'):
            raise ConfigError(
                f"{path}: quotes, backslashes, %, $ and line breaks mean something else in a unit; "
                "use another folder"
            )
    values = {
        "name": service.name,
        "user": service.user,
        "program": program,
        "home": home,
        "directory": home / "sites" / service.name,
        "patience": int(service.patience) + 60,
        "devices": _GPU if service.gpu else _NO_DEVICES,
    }
    return filled(_UNIT, values)
