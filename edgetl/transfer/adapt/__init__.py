"""Domain adaptation: a classifier for images of a new kind, from labelled source and unlabelled target images.

`methods` names them; `discrepancy`, `confusion` and `adversarial` hold their formulas; `frozen` fits a head on
cached features, `end_to_end` adds the loss to the training; `select` decides without target labels; `phase` is what
a fine-tuning run does of all that.
"""
