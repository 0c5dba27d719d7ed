"""An engine folder packed and unpacked again: the same files, the same bytes, and a card that says what is known."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pack_fixtures import FILES, MANIFEST, write_engine
from waiting import PATIENCE

from q8trt.cli.main import run_command
from q8trt.deployment.archive import pack, unpack
from q8trt.engine.manifest import Manifest
from q8trt.engine.manifest_file import load_manifest, write_manifest
from q8trt.errors import BusyError, ConfigError, EngineError

if TYPE_CHECKING:
    from cli_fixtures import Refused

pytest_plugins = ("cli_fixtures",)
ROOT = Path(__file__).parents[1]


@pytest.fixture
def packable(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "run" / "engine")


def card(folder: Path, **options: str) -> str:
    return zipfile.ZipFile(pack(folder, folder.parent / "card.q8trt", **options).path).read("MODEL_CARD.md").decode()


def write_benchmark(packable: Path, date: str = "2026-11-02T00:00:00+00:00", precision: str = "int8") -> None:
    latency = {"batch": 1, "sequence": 128, "median_ms": 7.2345, "p99_ms": 9.5, "samples_per_s": 138.2, "clock": "host"}
    row = {"folder": f"runs/x/{packable.name}", "precision": precision, "label": "ONNX Runtime, CPU, int8"}
    row |= {"name": "QAT INT8", "backend": "onnxruntime", "device": "cpu", "score_x100": 88.99}
    row |= {"metrics": {"f1": 0.8899}, "latencies": [latency]}
    report = {"schema": 2, "title": "MRPC", "main_metric": "f1", "rows": [row]}
    origin = {"date_utc": date, "git_commit": "0123456789abcdef", "hardware": {"cpu": "Some CPU", "cores": 2}}
    (packable.parent / "benchmark.json").write_text(json.dumps(report | {"provenance": origin}))


def test_what_is_packed_is_unpacked_byte_for_byte(packable: Path, tmp_path: Path) -> None:
    packed = pack(packable)
    assert packed.path == packable.with_name("engine.q8trt")
    assert packed.bytes == packed.path.stat().st_size
    folder = unpack(packed.path, tmp_path / "out")
    assert folder == tmp_path / "out"
    for name in ("manifest.json", *FILES):
        assert (folder / name).read_bytes() == (packable / name).read_bytes()
    assert load_manifest(folder) == load_manifest(packable)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "MODEL_CARD.md", "SHA256SUMS", *FILES}
    assert list(packed.members)[:3] == ["manifest.json", "MODEL_CARD.md", "SHA256SUMS"]


def test_the_bytes_depend_on_the_folder_alone(packable: Path, tmp_path: Path) -> None:
    first = pack(packable, tmp_path / "a.q8trt")
    copy = tmp_path / "elsewhere" / "other"
    shutil.copytree(packable, copy)
    for path in copy.iterdir():
        path.chmod(0o600)
        os.utime(path, (0, 1_700_000_000))
    second = pack(copy, tmp_path / "b.q8trt")
    assert first.sha256 == second.sha256
    for member in zipfile.ZipFile(first.path).infolist():  # what differs between systems and hours unless it is set
        assert (member.date_time, member.create_system, member.external_attr) == (
            (1980, 1, 1, 0, 0, 0),
            3,
            0o100644 << 16,
        )
    third = pack(unpack(first.path, tmp_path / "out"), tmp_path / "c.q8trt")
    assert third.sha256 == first.sha256


def test_files_beyond_4_gib_have_other_headers(packable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ZIP64, at a limit that small files reach."""
    plain = pack(packable, tmp_path / "a.q8trt")
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    large = pack(packable, tmp_path / "b.q8trt")
    assert large.bytes > plain.bytes
    assert large.sha256 == pack(packable, tmp_path / "c.q8trt").sha256
    monkeypatch.undo()
    assert (unpack(large.path, tmp_path / "out") / "model.plan").read_bytes() == FILES["model.plan"]


def test_sha256sum_checks_an_unpacked_folder(packable: Path, tmp_path: Path) -> None:
    folder = unpack(pack(packable).path, tmp_path / "out")
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum on this machine")
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert len((folder / "SHA256SUMS").read_text().splitlines()) == 2 + len(FILES)


def test_files_that_the_manifest_does_not_list_stay_out(packable: Path) -> None:
    (packable / "notes.txt").write_text("mine")
    assert "notes.txt" not in pack(packable).members


def test_an_archive_is_found_beside_its_folder_from_anywhere(packable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(packable)
    assert pack(".").path == packable.with_name("engine.q8trt")
    monkeypatch.chdir(packable.parent)
    assert pack("engine/").path == Path("engine.q8trt")


def test_the_card_says_task_scores_recipe_versions_and_files(packable: Path) -> None:
    text = card(packable)
    for part in (
        "# tiny on MRPC, INT8",
        "Task MRPC: two texts in, one of the labels `not_equivalent`, `equivalent` out.",
        "beyond 128 tokens",
        "| torch, fp32 checkpoint | dev.accuracy x100 | 87.50 |",
        "| torch, ptq checkpoint | dev.f1 x100 | 90.00 |",
        "Not measured: no `benchmark.json`",
        "| recipe | `linear`: The six linears \\| of each layer. |",
        "| plan | tensorrt_rtx 1.7.1.116, SM 8.6, 8.9 |",
        "1x1 to 32x64, best at 16x64",
        "| created | 2026-11-01T10:00:00+00:00 |",
        load_manifest(packable).files["model.plan"].sha256,
        "Of the base model `tiny`: not stated.",
    ):
        assert part in text, part


def test_the_card_labels_scores_of_the_built_in_sample(packable: Path) -> None:
    assert "not GLUE" not in card(packable)
    manifest = load_manifest(packable)
    write_manifest(packable, replace(manifest, report={**manifest.report, "is_sample": True}))
    text = card(packable)
    assert "# tiny on MRPC (built-in sample, not GLUE), INT8" in text
    assert "Of q8trt's sentence pairs (built-in sample, not GLUE). The task's main metric is" in text


def test_the_card_of_a_float_model_without_plan(tmp_path: Path) -> None:
    plain = {"recipe": None, "backend": None, "profiles": [], "metrics": {}, "stage": "", "precision": "fp32"}
    text = card(write_engine(tmp_path / "plain", **plain))
    assert "| recipe | none |" in text
    assert "| plan |" not in text
    assert "None recorded." in text


def test_the_card_quotes_the_benchmark_of_this_engine(packable: Path) -> None:
    write_benchmark(packable)
    text = card(packable)
    assert "ONNX Runtime, CPU, int8; Some CPU, 2 cores; 2026-11-02T00:00:00+00:00; commit 0123456789ab." in text
    assert "| 1x128 | 7.23 | 9.50 | 138 |" in text
    assert "| ONNX Runtime, CPU, int8 | f1 x100 | 88.99 |" in text


@pytest.mark.parametrize("changes", [{"date": "2026-10-31T00:00:00+00:00"}, {"precision": "fp32"}])
def test_a_benchmark_of_another_engine_is_not_quoted(packable: Path, changes: dict[str, str]) -> None:
    write_benchmark(packable, **changes)
    assert "Not measured" in card(packable)


def test_a_damaged_benchmark_is_not_quoted(packable: Path) -> None:
    (packable.parent / "benchmark.json").write_text('{"rows": [')
    assert "Not measured" in card(packable)


def test_the_license_is_the_one_given_or_the_base_models_own(packable: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text('---\nlanguage: en\nlicense: "cc-by-4.0"\n---\n# base\nlicense: no\n')
    stages = {"fp32": {"checkpoint": "fp32"}}
    (packable.parent / "run.json").write_text(
        json.dumps({"format": 1, "stages": stages, "config": {"model_name_or_path": str(base), "from_fp32": None}})
    )
    assert "Of the base model `tiny`: cc-by-4.0." in card(packable)
    assert card(packable).startswith("---\nlicense: cc-by-4.0\n")
    assert "Of the base model `tiny`: MIT, see below." in card(packable, license="MIT, see below")
    (base / "README.md").write_text("# base\nlicense: no\n")
    assert "Of the base model `tiny`: not stated." in card(packable)


@pytest.mark.parametrize("record", ["[]", "{", '{"stages": {}}', '{"stages": {"fp32": 1}, "config": 3}'])
def test_a_run_that_cannot_be_read_states_no_license(packable: Path, record: str) -> None:
    (packable.parent / "run.json").write_text(record)
    assert "not stated" in card(packable)


def test_a_card_of_ones_own_is_kept(packable: Path, tmp_path: Path) -> None:
    (packable / "MODEL_CARD.md").write_text("# mine\n")
    assert card(packable) == "# mine\n"
    assert (unpack(packable.with_name("card.q8trt"), tmp_path / "out") / "MODEL_CARD.md").read_text() == "# mine\n"
    with pytest.raises(ConfigError, match=r"--license is for a new card, but .*MODEL_CARD\.md exists"):
        pack(packable, license="mit")


def test_a_card_that_is_a_link_out_of_the_folder_is_not_packed(packable: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (packable / "MODEL_CARD.md").symlink_to(tmp_path / "secret")
    for refused in ("the card exists", "the card is missing"):
        with pytest.raises(EngineError, match=r"MODEL_CARD\.md is a link to another folder"):
            pack(packable)
        (tmp_path / "secret").unlink(missing_ok=True)
        assert not packable.with_name("engine.q8trt").exists(), refused
    (packable / "MODEL_CARD.md").unlink()
    (packable / "card.md").write_text("# inside\n")
    (packable / "MODEL_CARD.md").symlink_to("card.md")
    assert card(packable) == "# inside\n"


def test_a_card_that_unpack_would_refuse_is_not_packed(packable: Path) -> None:
    (packable / "MODEL_CARD.md").write_bytes(b" " * (4 * 2**20 + 1))
    with pytest.raises(EngineError, match=r"MODEL_CARD\.md cannot be packed: it is larger than the limit"):
        pack(packable)


@pytest.mark.parametrize("name", ["notes.txt", "run/engine/manifest.json", "run/engine/model.onnx", "other.zip"])
def test_packing_replaces_archives_only(packable: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "other.zip":
        zipfile.ZipFile(path, "w").writestr("a.txt", "mine")
    elif not path.exists():
        path.write_text("mine")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"exists and is not an archive of `q8trt pack`"):
        pack(packable, path)
    assert path.read_bytes() == before
    assert pack(packable, tmp_path / "x.q8trt").sha256 == pack(packable, tmp_path / "x.q8trt").sha256


def test_packing_does_not_replace_a_device(packable: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is not an archive"):
        pack(packable, tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="is not an archive"):
        pack(packable, tmp_path / "loop")
    assert (tmp_path / "loop").is_symlink()


def test_a_file_that_changes_while_it_is_packed(packable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from q8trt.deployment.archive import archive

    def changed(folder: Path) -> Manifest:
        manifest = load_manifest(folder)
        (folder / "model.plan").write_bytes(bytes(2048))
        return manifest

    monkeypatch.setattr(archive, "load_manifest", changed)
    with pytest.raises(EngineError, match=r"model\.plan changed while it was packed"):
        pack(packable)
    assert [path.name for path in packable.parent.iterdir()] == ["engine"]


def test_unpacking_keeps_links_of_the_user(packable: Path, tmp_path: Path) -> None:
    archive = pack(packable).path
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"is a link to .*nowhere, which does not exist"):
        unpack(archive, tmp_path / "dangling")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert load_manifest(unpack(archive, tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "manifest.json").is_file()


def test_one_process_unpacks_to_a_folder(packable: Path, tmp_path: Path) -> None:
    from q8trt.files import exclusive

    archive = pack(packable).path
    with exclusive(tmp_path / "out"), pytest.raises(BusyError):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m [a](http://x) `b`"


def test_names_in_a_card_are_no_markup(tmp_path: Path) -> None:
    task = replace(MANIFEST.task, name=HOSTILE, labels=[HOSTILE, "b"], main_metric=HOSTILE)
    model = replace(MANIFEST.model, name=HOSTILE)
    changes = {"head": None, "recipe": {"name": HOSTILE, "description": HOSTILE}, "metrics": {HOSTILE: {HOSTILE: 1}}}
    packable = write_engine(tmp_path / "run" / "engine", task=task, model=model, created=HOSTILE, **changes)
    text = card(packable, license=HOSTILE)
    outside = re.sub(r"``? [^\n]*? ``?(?!`)", "", text)  # code spans show what is in them
    assert "<img" not in outside
    assert "\x1b" not in text
    assert "[a](" not in outside
    assert r"&lt;img src=x onerror=alert(1)&gt;\\x1b\[31m \[a\](http://x) \`b\`" in text


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [{}]},
        {"rows": [{"folder": "engine", "precision": "int8", "latencies": [{}]}]},
        {"rows": [{"folder": 1, "precision": "int8"}]},
        {"rows": [{"folder": "engine", "precision": "int8", "latencies": [{"batch": "1"}]}]},
        {"rows": {}},
        {"provenance": {"date_utc": 5}},
        {"provenance": {"date_utc": "2026-11-02", "hardware": []}},
    ],
)
def test_a_malformed_benchmark_is_not_quoted(packable: Path, change: dict[str, Any]) -> None:
    write_benchmark(packable)
    path = packable.parent / "benchmark.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert "Not measured" in card(packable)


def test_a_card_that_the_manifest_lists(packable: Path, tmp_path: Path) -> None:
    (packable / "MODEL_CARD.md").write_text("# listed\n")
    write_manifest(packable, load_manifest(packable))
    assert "MODEL_CARD.md" in load_manifest(unpack(pack(packable).path, tmp_path / "out")).files


def test_a_damaged_folder_is_not_packed(packable: Path) -> None:
    (packable / "model.plan").write_bytes(b"other")
    with pytest.raises(EngineError, match=r"model\.plan is 5 bytes, the manifest says 2,048"):
        pack(packable)
    assert [path.name for path in packable.parent.iterdir()] == ["engine"]


@pytest.mark.parametrize("name", ["aux.txt", "two  words.txt ", "name:stream", "ümlaut.txt", "-rf"])
def test_a_name_that_could_not_be_unpacked_everywhere_is_not_packed(packable: Path, name: str) -> None:
    (packable / name).write_text("x")
    write_manifest(packable, load_manifest(packable))
    with pytest.raises(EngineError, match="cannot be packed: its name is not a plain file name"):
        pack(packable)


def test_a_manifest_that_lists_the_hashes_is_not_packed(packable: Path) -> None:
    (packable / "SHA256SUMS").write_text("x")
    write_manifest(packable, load_manifest(packable))
    with pytest.raises(EngineError, match="lists SHA256SUMS, a name that packing needs"):
        pack(packable)


def test_commands_say_where_everything_is(
    packable: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(packable.parent)
    assert run_command("pack", ["engine", "--license", "mit", "--output", "x.q8trt"]) == 0
    out = capsys.readouterr().out
    digest = out.partition("SHA-256: ")[2].split()[0]
    assert "archive: x.q8trt" in out
    assert "next: q8trt unpack x.q8trt" in out
    assert run_command("unpack", ["x.q8trt", "--sha256", digest.upper()]) == 0
    assert capsys.readouterr().out == "engine: x\n"
    assert "base model `tiny`: mit." in Path("x/MODEL_CARD.md").read_text()


def test_pack_refuses_in_one_line(refused: Refused, packable: Path) -> None:
    assert "engine folder nowhere does not exist" in refused("pack", "nowhere")
    assert "--output run is a folder; give the name of a file" in refused("pack", str(packable), "--output", "run")
    assert "unknown argument '--licence' (did you mean '--license'?)" in refused("pack", "x", "--licence", "mit")


def test_unpack_refuses_in_one_line(refused: Refused, packable: Path, tmp_path: Path) -> None:
    packed = str(pack(packable, tmp_path / "engine.q8trt").path)
    assert "nowhere.q8trt does not exist; expected an archive" in refused("unpack", "nowhere.q8trt")
    engine = str(packable)
    assert "is an engine folder already; add --overwrite to replace it" in refused(
        "unpack", packed, "--output_dir", engine
    )
    assert run_command("unpack", [packed, "--output_dir", engine, "--overwrite"]) == 0
    (packable / "notes.txt").write_text("mine")
    line = refused("unpack", packed, "--output_dir", engine, "--overwrite")
    assert "is not replaced: it contains 'notes.txt', which q8trt did not write" in line
    line = refused("unpack", packed, "--sha256", "00")
    assert "expected 00: it is not the archive that was published" in line
    (tmp_path / "folder").write_text("a file")
    assert "folder is a file" in refused("unpack", packed, "--output_dir", "folder")


def test_an_empty_folder_may_be_filled(packable: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert load_manifest(unpack(pack(packable).path, tmp_path / "out"))


def test_packing_needs_neither_torch_nor_onnx(packable: Path, tmp_path: Path) -> None:
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnx", "onnxruntime", "safetensors", "sklearn", "scipy", "rich"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
from q8trt.cli.main import main
sys.exit(main(["pack", sys.argv[1]]) or main(["unpack", sys.argv[1] + ".q8trt", "--output_dir", sys.argv[2]]))
"""
    command = [sys.executable, "-c", code, str(packable), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert load_manifest(tmp_path / "out")


@pytest.mark.parametrize("output", ["engine/engine.q8trt", "elsewhere/../engine/x.q8trt", "link/x.q8trt"])
def test_no_archive_is_written_into_the_engine_folder(packable: Path, output: str) -> None:
    """It would be a file of another program there, and keep the engine from being rebuilt."""
    (packable.parent / "elsewhere").mkdir()
    (packable.parent / "link").symlink_to(packable)
    before = sorted(packable.iterdir())
    with pytest.raises(ConfigError, match="is inside the engine folder"):
        pack(packable, packable.parent / output)
    assert sorted(packable.iterdir()) == before


def test_a_run_in_place_of_its_engine_names_the_engine(packable: Path) -> None:
    with pytest.raises(EngineError, match=rf"is a run, not an engine folder; give {re.escape(str(packable))}$"):
        load_manifest(packable.parent)
