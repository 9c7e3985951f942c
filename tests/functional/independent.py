"""BUNDLE GRAPH PHOTOS -> [images, accuracy], nothing of edgetl: photos are square, a resize is all there is to do."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

bundle, graph, photos = map(Path, sys.argv[1:4])
manifest = json.loads((bundle / "manifest.json").read_text())
size, session, hits = manifest["preprocess"]["size"], onnxruntime.InferenceSession(graph), []
for path in sorted(photos.glob("*/*.png")):
    image = np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.BILINEAR), np.float32)
    logits = session.run(None, {session.get_inputs()[0].name: image.transpose(2, 0, 1)[None]})[0]
    hits.append(manifest["labels"][logits.argmax()] == path.parent.name)
print(json.dumps([len(hits), float(np.mean(hits))]))
