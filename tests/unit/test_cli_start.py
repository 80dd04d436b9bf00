import subprocess
import sys

PROGRAM = """
import sys
import hansa.cli.main
print([name for name in ("grpc", "rich", "pydantic", "matplotlib") if name in sys.modules])
"""


def test_the_command_starts_without_importing_anything_slow() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
