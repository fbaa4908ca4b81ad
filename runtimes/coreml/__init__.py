"""The coreml/ folder of a bundle on CoreML or in numpy."""
