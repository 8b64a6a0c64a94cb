"""What a base model is known by."""

import hashlib
from pathlib import Path

from attune.errors import NotFound

_CHUNK_BYTES = 1 << 20


def model_hash(folder: Path) -> str:
    """SHA-256 (hexadecimal) over the names and SHA-256 of config.json and every *.safetensors, sorted by name.

    Reads all of the weights once. The tokenizer and the chat template have hashes of their own (ChatTemplate).
    """
    weights = sorted(folder.glob("*.safetensors"))
    config = folder / "config.json"
    if not weights or not config.is_file():
        raise NotFound(f"{folder} holds no model: it wants config.json and *.safetensors")
    listing = "".join(f"{file.name} {_file_hash(file)}\n" for file in [config, *weights])
    return hashlib.sha256(listing.encode()).hexdigest()


def _file_hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
