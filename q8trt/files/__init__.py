"""Safe writing and reading of files: atomic writes, advisory locks, hashes, and limits on untrusted input.

`atomic` writes a file or a folder completely or not at all. `locks` keeps a second writer out. `ownership` decides which files
may be replaced. `decoding` reads untrusted JSON and YAML within limits. `seals` records the hashes of a folder's files and
compares them. `panics` turns panics of Rust libraries into errors. `onnx` checks ONNX files.
"""

from q8trt.files.atomic import (
    atomic_file,
    atomic_folder,
    finish_folder,
    remove_stale,
    scratch_folder,
    sha256,
    sweep,
    sync,
    write_bytes,
    write_json,
    write_text,
)
from q8trt.files.decoding import (
    Limits,
    MalformedError,
    decode,
    open_regular,
    parse_json,
    parse_yaml,
    read_json,
    read_limited,
)
from q8trt.files.locks import exclusive
from q8trt.files.ownership import (
    FolderKind,
    check_apart,
    check_folder,
    check_report,
    json_with,
    new_folder,
    replaceable_folder,
    writable_file,
)
from q8trt.files.panics import no_panic
from q8trt.files.seals import SEAL_FILE, find_damage, has_seal, write_seal

__all__ = [
    "SEAL_FILE",
    "FolderKind",
    "Limits",
    "MalformedError",
    "atomic_file",
    "atomic_folder",
    "check_apart",
    "check_folder",
    "check_report",
    "decode",
    "exclusive",
    "find_damage",
    "finish_folder",
    "has_seal",
    "json_with",
    "locks",
    "new_folder",
    "no_panic",
    "onnx",
    "open_regular",
    "parse_json",
    "parse_yaml",
    "protobuf",
    "read_json",
    "read_limited",
    "remove_stale",
    "replaceable_folder",
    "scratch_folder",
    "sha256",
    "sweep",
    "sync",
    "writable_file",
    "write_bytes",
    "write_json",
    "write_seal",
    "write_text",
]
