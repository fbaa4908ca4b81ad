package ai.edgevlm.onnx

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.bundle.Bundle
import ai.edgevlm.generate.Runtime
import ai.edgevlm.layout.Positions
import ai.onnxruntime.OrtEnvironment

/** The onnx/ folder of a bundle on ONNX Runtime. */
internal object OrtEngine {
    private const val ENCODER = "vision_encoder"
    private const val TABLE = "embed_tokens"
    private const val DECODER = "decoder"
    private const val PREFILL = "decoder_prefill"

    /** Older ones lack what some graphs are of, or compute it wrong. */
    private const val OLDEST = 27

    /**
     * From 1.30 on, attention whose pictures or prompts see later positions is right, and states that are overwritten have
     * the operators that bundles use.
     */
    private const val WHOLE = 30

    private val environment: OrtEnvironment by lazy {
        try {
            OrtEnvironment.getEnvironment().also { it.setTelemetry(false) }
        } catch (error: LinkageError) {
            throw EdgeVLMException.RuntimeFailed("ONNX Runtime has no library for this device (${error.message?.take(200)}).", error)
        }
    }
    private val saturates: Boolean by lazy { Products.signedSaturates(environment) }

    fun open(bundle: Bundle, threads: Int, portable: Boolean?): Runtime {
        val target = bundle.manifest.onnx ?: throw EdgeVLMException.Unsupported(
            "The bundle '${bundle.folder}' has no ONNX graphs, which this SDK runs: export it again with the target onnx.",
        )
        val spec = bundle.manifest.spec
        val lacking = release() < WHOLE && (spec.positions.mask != Positions.Mask.CAUSAL || spec.replaces)
        val standard = portable ?: lacking
        check(release() >= OLDEST) { "is too old, this SDK takes 1.$OLDEST or later" }
        check(standard || !lacking) {
            "is too old for this model's own graphs, which it computes right from 1.$WHOLE on: take the portable ones"
        }
        val opened = ArrayList<AutoCloseable>()
        try {
            fun load(name: String): Graph {
                val declared = target[name] ?: throw EdgeVLMException.BundleError(
                    "The bundle '${bundle.folder}' has no graph '$name': export it again.",
                )
                // Looking up rows needs no pool; an idle one would spin beside the decoder's after every token.
                val own = if (name == TABLE) 1 else threads
                val file = bundle.file(if (standard) declared.portable else declared.file)
                // Standard operators multiply in float32.
                val graph = Graph.open(environment, file, own, !standard && saturates).also { opened += it }
                Signature.check(graph, name, declared, spec, standard)
                return graph
            }
            val encoder = OrtEncoder(environment, load(ENCODER), spec, bundle.imageSpec)
            val table = load(TABLE)
            val graphs = listOf(DECODER, PREFILL).filter { it in target || it == DECODER }.map(::load)
            val shared = target.getValue(DECODER).sharedKv && !standard
            val cache = if (shared) SharedCache(environment, spec, graphs) else PassedCache(environment, spec, graphs)
            return Runtime(encoder, OrtDecoder(environment, table, graphs, cache, spec))
        } catch (error: Throwable) {
            opened.forEach { it.close() }
            throw error
        }
    }

    /** The second number of its version. */
    private fun release(): Int = environment.version.split('.')[1].toInt()

    private fun check(good: Boolean, wrong: () -> String) {
        if (!good) throw EdgeVLMException.Unsupported("ONNX Runtime ${environment.version} ${wrong()}.")
    }
}
