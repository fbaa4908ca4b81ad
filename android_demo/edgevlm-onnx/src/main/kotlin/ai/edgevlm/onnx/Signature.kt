package ai.edgevlm.onnx

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.bundle.ModelSpec
import ai.edgevlm.bundle.OnnxGraph
import ai.edgevlm.bundle.TensorInfo

/**
 * A graph takes and gives what the manifest says, and, where memory is made and read by it, what the model's description
 * does: sessions write into buffers of these shapes.
 */
internal object Signature {
    private val TYPES = mapOf("float32" to "float", "int64" to "int64", "int8" to "int8", "bool" to "bool")

    /** [portable]: one of standard operators, which keeps floats. */
    fun check(graph: Graph, name: String, declared: OnnxGraph, spec: ModelSpec, portable: Boolean) {
        compare(name, graph.inputs(), declared.inputs, portable)
        compare(name, graph.outputs(), declared.outputs, portable)
        val wanted = LinkedHashMap<String, TensorInfo>()
        val (taken, given) = when (name) {
            "vision_encoder" -> emptyMap<String, TensorInfo>() to mapOf("image_features" to floats(null, null, spec.featureWidth))
            "embed_tokens" -> mapOf("input_ids" to TensorInfo("int64", listOf(null, null))) to
                mapOf("inputs_embeds" to floats(null, null, spec.embedWidth))
            else -> {
                wanted["inputs_embeds"] = floats(null, null, spec.embedWidth)
                wanted["attention_mask"] = TensorInfo("int64", listOf(null, null))
                for (state in spec.states) wanted["past_key_values.${state.name}"] = state(state.dtype, state.shape)
                val present = spec.states.associate { "present.${it.name}" to state(it.dtype, it.shape) }
                wanted to present + ("logits" to floats(null, 1, spec.vocabSize))
            }
        }
        for ((found, expected) in listOf(graph.inputs() to taken, graph.outputs() to given)) {
            for ((key, tensor) in expected) fits(name, key, found[key], tensor, portable)
        }
    }

    private fun floats(vararg axes: Int?) = TensorInfo("float32", axes.toList())

    private fun state(dtype: String, shape: List<Int?>) = TensorInfo(dtype, listOf<Int?>(null) + shape)

    private fun compare(name: String, found: Map<String, Graph.Value>, declared: Map<String, TensorInfo>, portable: Boolean) {
        (found.keys - declared.keys).minOrNull()?.let { throw disagree("'$name' also has '${it.take(80)}'") }
        for ((key, tensor) in declared) fits(name, key, found[key], tensor, portable)
    }

    /** Free axes may have any names; an axis that is fixed on one side is the same number on the other, or free. */
    private fun fits(name: String, key: String, found: Graph.Value?, wanted: TensorInfo, portable: Boolean) {
        if (found == null) throw disagree("'$name' has no '${key.take(80)}'")
        val dtype = if (portable && wanted.dtype == "int8") "float32" else wanted.dtype
        val same = TYPES[dtype] == found.type && found.shape.size == wanted.shape.size &&
            found.shape.zip(wanted.shape).all { (ours, theirs) -> ours < 0 || theirs == null || ours == theirs }
        if (!same) throw disagree("'$name' has '${key.take(80)}' as $found, expected $dtype ${wanted.shape}")
    }

    private fun disagree(what: String) = EdgeVLMException.RuntimeFailed(
        "The bundle's graphs and its manifest disagree: $what; export the bundle again.",
    )
}
