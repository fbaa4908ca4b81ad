"""Whether the text file is of the manifest's decoder, before arrays are passed by what that says."""

from __future__ import annotations

from edgevlm.errors import RuntimeFailed
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Attention
from edgevlm.runtimes.gguf import GgufFile
from edgevlm.runtimes.llama.names import EMBEDDINGS, SHARING, level_before_layers


def check_agreement(file: GgufFile, spec: ModelSpec) -> None:
    """Raise EdgeVLMError unless the text file is of the manifest's decoder.

    By these numbers arrays are passed to llama.cpp, which reads as much as its own file says.
    """
    d, table = spec.decoder, file.tensors.get(EMBEDDINGS)
    mixers = [d.block(layer).mixers[0] for layer in range(d.num_layers)]
    attention = next((mixer for mixer in mixers if isinstance(mixer, Attention)), None)
    wanted: dict[str, object] = {"embedding_length": d.hidden_size, "block_count": d.num_layers}
    if attention is not None:
        kv = [mixer.kv_heads if isinstance(mixer, Attention) else 0 for mixer in mixers]
        listed = isinstance(file.keys.get(f"{file.keys.get('general.architecture')}.attention.head_count_kv"), list)
        wanted |= {"attention.head_count": attention.heads}
        wanted["attention.head_count_kv"] = kv if listed else attention.kv_heads
        sizes = {mixer.window is None: mixer.head_dim for mixer in mixers if isinstance(mixer, Attention)}
        wanted["attention.key_length"] = sizes.get(True, attention.head_dim)
        two = file.keys.get("general.architecture") == SHARING  # sizes of heads
        wanted["attention.key_length_swa"] = sizes.get(False) if two else None
    wanted["embedding_length_per_layer_input"] = d.per_layer or None
    sections = [rope.sections for rope in d.ropes.values() if rope.sections]
    wanted["rope.dimension_sections"] = [*sections[0], 0] if sections else None
    wanted["n_deepstack_layers"] = len(d.deepstack) if sections and d.ropes["main"].interleaved else None
    wanted["deepstack_mapping"] = level_before_layers(d) if d.deepstack and not sections else None
    found = {key: file.keys.get(f"{file.keys.get('general.architecture')}.{key}") for key in wanted}
    wanted["embeddings"], found["embeddings"] = (d.vocab_size, d.hidden_size), table.shape if table else None
    for key in wanted:
        if wanted[key] != found[key]:
            raise RuntimeFailed(
                f"'{file.path}' has {key} = {repr(found[key])[:80]}, and the manifest says {wanted[key]}: the file "
                "belongs to another model; export the bundle again."
            )
