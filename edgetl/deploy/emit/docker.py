"""A Dockerfile for the board: NVIDIA's base for its JetPack, the system's numpy, Pillow and GStreamer, and no model.

The deployment that `edgetl deploy` made is mounted, so a new release needs no new image, and an engine stays what it
is: one board's own. NVIDIA's l4t images end with JetPack 6; from 7 on its images for Arm servers (SBSA) are meant.
"""

from __future__ import annotations

from edgetl.deploy.emit.served import Served
from edgetl.deploy.remote import HOME
from edgetl.spec import Profile
from edgetl.target import JETPACKS, profile_for

# Base by JetPack line. Tags as NVIDIA's registry lists them; pulled by nobody here. An image whose TensorRT is
# another one than the board's wants its engines built inside: they say so when they are opened.
BASES = {
    "5.1": "nvcr.io/nvidia/l4t-jetpack:r35.4.1",
    "6.0": "nvcr.io/nvidia/l4t-jetpack:r36.3.0",
    "6.1-6.2": "nvcr.io/nvidia/l4t-jetpack:r36.4.0",
    "7.0-7.1": "nvcr.io/nvidia/tensorrt:25.09-py3",
    "7.2": "nvcr.io/nvidia/tensorrt:25.09-py3",
}
_DEFAULT = {Profile.TRT8: "5.1", Profile.TRT10: "6.1-6.2"}
_CPU_BASE = "ubuntu:24.04"
_ORT = "1.23.2"  # the last one that was seen to run on aarch64
_PACKAGES = ("gstreamer1.0-plugins-good", "gstreamer1.0-tools", "python3-numpy", "python3-pil")


def texts(model: Served) -> dict[str, str]:
    """The Dockerfile, and a .dockerignore: the image takes nothing from the folder it is built in."""
    cpu = model.profile is Profile.CPU
    lines = [f"# {model.name}: a container that runs what `edgetl deploy` put on a board ({model.profile} graphs)."]
    lines += _how(model.name, cpu)
    if not cpu:
        lines += ["# For another JetPack give --build-arg BASE=..."]
        lines += [f"#   {row.name:8} {BASES[row.name]}" for row in JETPACKS if _fits(row.tensorrt, model.profile)]
    lines += [f"ARG BASE={_CPU_BASE if cpu else BASES[_DEFAULT[model.profile]]}", "FROM ${BASE}", *_installed(cpu)]
    lines += [
        "# A deployment is private to the account that made it: run as that one (--user above).",
        "USER 1000:1000",
    ]
    lines += ["WORKDIR /deployment", 'ENTRYPOINT ["python3", "/deployment/app.pyz"]']
    words = ["run", *(["--backend", "onnxruntime"] if cpu else []), "--source", "/dev/video0", "/deployment/current"]
    lines += ["CMD [" + ", ".join(f'"{word}"' for word in words) + "]"]
    return {"Dockerfile": "\n".join(lines) + "\n", ".dockerignore": "*\n"}


def _fits(tensorrt: str, profile: Profile) -> bool:
    return not tensorrt.startswith("8.2") and profile_for(tensorrt) == profile


def _how(name: str, cpu: bool) -> list[str]:
    tag, folder = f"edgetl-{name.lower()}", f"$HOME/{HOME}/{name}"
    gpu = "" if cpu else "--runtime nvidia "
    run = f'docker run --rm {gpu}--user "$(id -u):$(id -g)" --group-add video'
    lines = [
        f"#   docker build -t {tag} .",
        f'#   {run} --device /dev/video0 -v "{folder}:/deployment:ro" {tag}',
    ]
    if not cpu:
        lines += [
            "# Where the image's TensorRT is another one than the board's, build its engine inside, once:",
            f'#   {run} -v "{folder}:/deployment" {tag} build /deployment/current --precision int8',
        ]
    return lines


def _installed(cpu: bool) -> list[str]:
    packages = (*_PACKAGES, "python3-pip") if cpu else _PACKAGES
    lines = [
        # Not pinned: numpy and Pillow are to be the Ubuntu's own, as on the board.
        "# hadolint ignore=DL3008",
        "RUN apt-get update \\",
        "    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "
        + " ".join(packages)
        + " \\",
        "    && rm -rf /var/lib/apt/lists/*",
    ]
    if cpu:
        lines += [f"RUN python3 -m pip install --no-cache-dir --break-system-packages onnxruntime=={_ORT} 'numpy<2'"]
    return lines
