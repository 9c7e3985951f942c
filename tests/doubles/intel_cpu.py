"""A CPU that says it is Intel's: OpenVINO's plug-in (1.8) offers no device for one by anybody else.

OpenVINO itself runs on every x86-64 CPU, so that with this one word changed the real plug-in runs the real graphs
on the machine of a test. onnxruntime keeps the maker in its OrtHardwareDevice {type, vendor_id, device_id, ...}; the
field is found by its value and changed in memory. For tests alone.
"""

from __future__ import annotations

import ctypes

import onnxruntime

INTEL = 0x8086
_HEADER = 16  # bytes of a CPython object before pybind11's pointer to what it holds


def pretend() -> None:
    """To be called before the plug-in is loaded. Raises RuntimeError where onnxruntime keeps it in another way."""
    for found in onnxruntime.get_ep_devices():
        device = found.device
        if device.type != onnxruntime.OrtHardwareDeviceType.CPU or device.vendor_id == INTEL:
            continue
        address = ctypes.c_void_p.from_address(id(device) + _HEADER).value
        fields = (ctypes.c_uint32 * 3).from_address(address)
        if fields[1] != device.vendor_id:
            raise RuntimeError("onnxruntime keeps a device's maker elsewhere")
        fields[1] = INTEL
        if device.vendor_id != INTEL:
            raise RuntimeError("the change was not seen")
