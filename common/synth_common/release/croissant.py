"""``croissant.json``: the release as machines that look for data sets read it.

Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec.html): JSON-LD over
schema.org, with the files, and a record set whose records are the images with their labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from synth_common.release.names import METADATA, ReleaseName

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
# The context of the specification, appendix 1, as it stands there.
_CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_COLUMNS = {
    "file_name": ("sc:Text", "The image's file, relative to images/."),
    "label": ("sc:Text", "The class that the image was drawn for."),
    "split": ("sc:Text", "train, val or test. All three are synthetic."),
    "seed": ("sc:Integer", "What the image was drawn with."),
    "mask": ("sc:Text", "The image's mask, relative to images/."),
}


def croissant(
    release: ReleaseName,
    about: Mapping[str, Any],
    metadata_sha256: str,
    columns: Sequence[str],
) -> str:
    """The description as JSON-LD.

    Args:
        release: Name and version.
        about: ``description``, ``license``, ``date`` (ISO), ``creator``, ``cite_as``, and
            ``limits`` and ``uses`` as lists of sentences; None for what nobody stated.
        metadata_sha256: Of ``images/metadata.csv``.
        columns: Its columns.
    """
    values: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": release.name,
        "version": release.version,
        "conformsTo": CONFORMS_TO,
        "description": about["description"],
        "license": about["license"],
        "datePublished": about["date"],
        "isLiveDataset": False,
        "keywords": ["synthetic data", "medical imaging", "differential privacy"],
        "distribution": _distribution(metadata_sha256),
        "recordSet": [_records(columns), _PICTURES],
        "rai:personalSensitiveInformation": about["privacy"],
    }
    if about["creator"]:
        values["creator"] = {"@type": "sc:Organization", "name": about["creator"]}
    for key, name in (("cite_as", "citeAs"), ("limits", "rai:dataLimitations")):
        if about[key]:
            values[name] = about[key]
    if about["uses"]:
        values["rai:dataUseCases"] = about["uses"]
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


_PICTURES: Mapping[str, Any] = {
    "@type": "cr:RecordSet",
    "@id": "pictures",
    "name": "pictures",
    "description": "The images themselves, with their classes.",
    "field": [
        {
            "@type": "cr:Field",
            "@id": "pictures/file_name",
            "name": "file_name",
            "dataType": "sc:Text",
            "references": {"field": {"@id": "images/file_name"}},
            "source": {
                "fileSet": {"@id": "image-files"},
                "extract": {"fileProperty": "fullpath"},
                "transform": {"regex": "^images/(.+)$"},
            },
        },
        {
            "@type": "cr:Field",
            "@id": "pictures/image",
            "name": "image",
            "dataType": "sc:ImageObject",
            "source": {
                "fileSet": {"@id": "image-files"},
                "extract": {"fileProperty": "content"},
            },
        },
        {
            "@type": "cr:Field",
            "@id": "pictures/label",
            "name": "label",
            "dataType": "sc:Text",
            "source": {"field": {"@id": "images/label"}},
        },
    ],
}


def _distribution(metadata_sha256: str) -> list[dict[str, Any]]:
    """The table and the images, both relative to this description."""
    return [
        {
            "@type": "cr:FileObject",
            "@id": "metadata",
            "name": "metadata.csv",
            "description": "One line per image.",
            "contentUrl": METADATA,
            "encodingFormat": "text/csv",
            "sha256": metadata_sha256,
        },
        {
            "@type": "cr:FileSet",
            "@id": "image-files",
            "name": "image-files",
            "description": "The images, marked as made by a trained algorithm.",
            "encodingFormat": "image/png",
            "includes": "images/*/[0-9]*.png",
        },
    ]


def _records(columns: Sequence[str]) -> dict[str, Any]:
    """One record per line of the table."""
    return {
        "@type": "cr:RecordSet",
        "@id": "images",
        "name": "images",
        "description": "The images with their classes.",
        "key": {"@id": "images/file_name"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"images/{column}",
                "name": column,
                "description": _COLUMNS[column][1],
                "dataType": _COLUMNS[column][0],
                "source": {"fileObject": {"@id": "metadata"}, "extract": {"column": column}},
            }
            for column in columns
        ],
    }
