"""The coreml/ folder of a bundle: on CoreML where there is one (macOS), elsewhere through the evaluator."""

from edgevlm.runtimes.coreml.runtime import CoreMLRuntime

__all__ = ["CoreMLRuntime"]
