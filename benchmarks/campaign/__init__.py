"""A campaign of bad input: every case ends as an answer or as one line, never as a traceback, a hang or a lost file.

    python -m benchmarks.campaign                 # every area
    python -m benchmarks.campaign archives data   # these
    python -m benchmarks.campaign archives --only truncated --limit 20 --verbose

An area is a module of this package. It yields cases (`driver.Case`) and calls `driver.run_area` in its `main`:

    from benchmarks.campaign.driver import Case, run_area
    from benchmarks.campaign.mutations import flipped

    def cases(base: Path, random: Random) -> Iterator[Case]:
        archive = make_sound_archive(base)              # once; `base` is a folder that all cases may read
        for number in range(100):
            data = flipped(archive.read_bytes(), random)
            yield Case(
                name=f"flip {number}",
                call=("unpack", "x.q8trt", "--output_dir", "engine"),      # q8trt's arguments, or a function
                setup=lambda folder, data=data: (folder / "x.q8trt").write_bytes(data),
                oracle=lambda outcome, folder: "" if sound(folder) else "a changed file was unpacked",
                writes=("engine",),
            )

    def main(argv: Sequence[str] | None = None) -> int:
        return run_area("archives", cases, argv)

Each case runs in an empty folder of its own, in a fork of a process that has imported torch and transformers already, so
that a case costs milliseconds. Cases that need a signal, a limit or another environment run as real processes (`Process`).
"""
