"""How long a project takes to render, beside a project of a template with a single file.

Prints the median of five renderings of each, in seconds, and the ratio of the two.
"""

import statistics
import tempfile
import time
import warnings
from pathlib import Path

import copier
from copier.errors import DirtyLocalWarning

TEMPLATE = Path(__file__).resolve().parent.parent
REPETITIONS = 5


def rendering_time(template: Path, folder: Path) -> float:
    """Seconds that one rendering into a new folder takes."""
    start = time.perf_counter()
    copier.run_copy(str(template), folder, defaults=True, vcs_ref="HEAD", quiet=True)
    return time.perf_counter() - start


def main() -> None:
    """Render both templates in turns."""
    warnings.simplefilter("ignore", DirtyLocalWarning)
    ours: list[float] = []
    floor: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        single_file = Path(temporary, "single-file")
        single_file.mkdir()
        (single_file / "copier.yml").write_text("{}\n")
        (single_file / "README.md").write_text("# Nothing else\n")
        for repetition in range(REPETITIONS):
            ours.append(rendering_time(TEMPLATE, Path(temporary, f"ours-{repetition}")))
            floor.append(rendering_time(single_file, Path(temporary, f"floor-{repetition}")))
    of_ours, of_floor = statistics.median(ours), statistics.median(floor)
    print(f"rendering, median of {REPETITIONS}: {of_ours:.2f} s")
    print(f"a single file: {of_floor:.2f} s; ours/floor: {of_ours / of_floor:.1f}")


if __name__ == "__main__":
    main()
