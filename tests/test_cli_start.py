"""A law of the first moments of a command."""

import os
import signal
import subprocess
import sys
import time


def test_ctrl_c_while_the_command_line_is_imported_is_no_traceback(tmp_path):
    # What is imported first of all waits for it.
    (tmp_path / "typer.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(60)\n")
    code = "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "runpy.run_module('analysis', run_name='__main__')"
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "importing\n"
    time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=30)[1] == "Interrupted.\n" and child.returncode == 130
