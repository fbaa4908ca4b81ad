"""Tiny random checkpoints of each family, as transformers and the Hub write them, and transformers' answers.

One module per family: `build(folder, ...)` writes a checkpoint and returns the model it was made from,
`load_processor(folder)` gives transformers' processor without torchvision, and `common.ask` runs both. Put tests/ on
sys.path, then:

    from tiny import qwen2_5_vl
    from tiny.common import ask, picture

    model = qwen2_5_vl.build(folder, layout="hub")
    said = ask(model, qwen2_5_vl.load_processor(folder), [picture(50, 70)], "What is this?")
"""
