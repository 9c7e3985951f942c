"""A systemd unit that serves what a deploy switched to: the device's app on a camera, as an ordinary user.

Options as in systemd.exec(5), systemd.service(5) and systemd.unit(5) of version 245 (JetPack 5's Ubuntu).
"""

from __future__ import annotations

from edgetl.deploy.emit.served import Served
from edgetl.deploy.remote import HOME
from edgetl.spec import Profile


def texts(model: Served) -> dict[str, str]:
    """The template unit edgetl-<name>@.service; its instance is the account that edgetl deploys into."""
    backend = "--backend onnxruntime " if model.profile is Profile.CPU else ""
    values = {"NAME": model.name, "ROOT": f"{HOME}/{model.name}", "BACKEND": backend}
    unit = _UNIT
    for key, value in values.items():
        unit = unit.replace(f"@{key}@", value)
    return {f"edgetl-{model.name}@.service": unit}


# Neither ProtectClock nor PrivateDevices nor a DeviceAllow: each of them closes all other devices, and how the GPU's
# are called differs between JetPacks (nvhost, nvmap and nvgpu up to 6, nvidia in 7). Their group, video, is the guard.
_UNIT = """\
# @NAME@: classify a camera with what `edgetl deploy` put on this board; answers are JSON lines in the journal.
#   sudo cp edgetl-@NAME@@.service /etc/systemd/system/ && sudo systemctl daemon-reload
#   sudo systemctl enable --now "edgetl-@NAME@@$USER.service"     (the account that edgetl deploys into)
#   edgetl deploy ... --restart edgetl-@NAME@@USER.service        starts it anew after each switch
#   another source:  echo 'SOURCE=rtsp://camera/stream' | sudo tee /etc/default/edgetl-@NAME@
[Unit]
Description=edgetl: @NAME@ on a camera, as %i
Wants=network-online.target
After=network-online.target
# A camera may come back after an hour.
StartLimitIntervalSec=0

[Service]
Type=exec
User=%i
SupplementaryGroups=video render
WorkingDirectory=~
Environment=SOURCE=/dev/video0
Environment=XDG_CACHE_HOME=%C/edgetl-@NAME@ CUDA_CACHE_PATH=%C/edgetl-@NAME@/cuda
EnvironmentFile=-/etc/default/edgetl-@NAME@
ExecStart=/usr/bin/python3 @ROOT@/app.pyz run @BACKEND@--source ${SOURCE} @ROOT@/current
Restart=on-failure
RestartSec=5
CacheDirectory=edgetl-@NAME@
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""
