"""The CoreML target. coremltools is imported when an export begins."""

from edgevlm.export.coreml_.options import CoreMLOptions, check_recipe
from edgevlm.export.coreml_.write import check_coreml, write_coreml

__all__ = ["CoreMLOptions", "check_coreml", "check_recipe", "write_coreml"]
