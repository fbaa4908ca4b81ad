"""One question about many pictures, into a table that a stopped run goes on with: `label` does it all."""

from edgevlm.label.run import LabelOptions, Labels, label

__all__ = ["LabelOptions", "Labels", "label"]
