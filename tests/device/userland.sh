#!/bin/sh
# A real aarch64 Debian userland for the device tests: debootstrap, then everything in it runs under qemu-user.
#
#   sudo tests/device/userland.sh [FOLDER]     (default: ~/.cache/edgetl/aarch64; about 3 minutes, 600 MB)
#
# Wants Debian or Ubuntu with: qemu-user-static debootstrap openssh-server python3-pip (or PIP="python -m pip").
# The tests find it through EDGETL_AARCH64 or at the default place, and skip with a reason where there is none.
set -eu
root=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/edgetl/aarch64}
pip=${PIP:-python3 -m pip}
ort=1.23.2

[ "$(id -u)" = 0 ] || { echo "error: debootstrap and chroot need root: sudo $0" >&2; exit 1; }
for tool in debootstrap qemu-aarch64-static; do
  command -v $tool >/dev/null || { echo "error: $tool is missing: apt-get install qemu-user-static debootstrap" >&2; exit 1; }
done
[ ! -f "$root/.complete" ] || { echo "$root is there already"; exit 0; }

# Where there is no systemd nobody has told the kernel who runs aarch64 programs.
if [ ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]; then
  [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
  cat /usr/lib/binfmt.d/qemu-aarch64.conf >/proc/sys/fs/binfmt_misc/register
fi

rm -rf "$root"
mkdir -p "$root"
packages=python3-minimal,python3-numpy,python3-pil,openssh-server,procps,util-linux
debootstrap --arch=arm64 --variant=minbase --foreign --include=$packages bookworm "$root" http://deb.debian.org/debian
cp "$(command -v qemu-aarch64-static)" "$root/usr/bin/"
chroot "$root" /debootstrap/debootstrap --second-stage

# onnxruntime as a user of the board would add it; its other requirements are not needed to run a graph.
wheels=$(mktemp -d)
$pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
  --python-version 311 --dest "$wheels" onnxruntime==$ort
python3 -m zipfile -e "$wheels"/onnxruntime-*.whl "$root/usr/lib/python3/dist-packages"
rm -rf "$wheels"

# Plain folders in place of /proc and /sys: what a Jetson Orin Nano with JetPack 6.2 would tell, and what onnxruntime
# wants to know of the CPU. A mounted /sys of the host would end onnxruntime.
mkdir -p "$root/proc/device-tree" "$root/sys/devices/system/cpu" "$root/run/sshd"
for name in possible present online; do echo 0 >"$root/sys/devices/system/cpu/$name"; done
printf 'processor\t: 0\nFeatures\t: fp asimd aes crc32 atomics fphp asimdhp asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd42\nCPU revision\t: 1\n' >"$root/proc/cpuinfo"
printf 'MemTotal:        7802136 kB\nMemFree:         5000000 kB\nMemAvailable:    6200000 kB\nSwapTotal:       3901064 kB\nSwapFree:        3901064 kB\n' >"$root/proc/meminfo"
printf 'NVIDIA Jetson Orin Nano Developer Kit\0' >"$root/proc/device-tree/model"
printf 'nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0' >"$root/proc/device-tree/compatible"
echo '# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64' >"$root/etc/nv_tegra_release"
printf '#!/bin/sh\necho "NV Power Mode: 15W"\necho 0\n' >"$root/usr/sbin/nvpmodel"
chmod 755 "$root/usr/sbin/nvpmodel"
: >"$root/.complete"
echo "$root is ready"
