package ai.edgevlm.bundle

import ai.edgevlm.EdgeVLMException

/** A device has too little memory for a bundle: bytes that are [needed], and those that are [available]. */
public class NotEnoughMemory(message: String, public val needed: Long, public val available: Long) : EdgeVLMException(message)

/**
 * Bytes of memory that a bundle's ONNX graphs take, estimated before anything is loaded.
 *
 * [weights]: of the graphs' files, and what an engine adds when it arranges them. [states]: what the decoder keeps for a
 * conversation of so many positions, while it grows. [working]: values between operations, and the tokenizer.
 */
public data class MemoryNeed(val weights: Long, val states: Long, val working: Long) {
    val total: Long get() = weights + states + working

    /** Throws [NotEnoughMemory] where [available] bytes are fewer. */
    public fun check(available: Long) {
        if (available >= total) return
        throw NotEnoughMemory(
            "The model needs about ${mb(total)} of memory, and ${mb(available)} are available: close other apps, shorten the conversation, or take a smaller model.",
            total,
            available,
        )
    }

    public companion object {
        /** Engines arrange weights for their kernels: 252 MB of 198 in docs/performance.md's table of the default model. */
        private const val ARRANGED = 1.3

        /** One tile's encoding there (82 MB), and the tokenizer (46 MB). */
        private const val WORKING = 128L shl 20

        /** Of a conversation of [positions], prompt and answer together; by default all that the model takes. */
        public fun of(manifest: Manifest, positions: Int = manifest.spec.contextLength): MemoryNeed {
            if (manifest.onnx == null) throw EdgeVLMException.Unsupported("The bundle has no ONNX target: export it with one.")
            val files = manifest.files.filterKeys { it.startsWith("onnx/") }.values.sumOf { it.size }
            val kept = positions.coerceIn(1, manifest.spec.contextLength)
            val bytes = manifest.spec.states.sumOf { state -> state.shape.fold(if (state.dtype == "int8") 1L else 4L) { all, axis -> all * (axis ?: kept) } }
            // A growing state and its copy of half the size are there at once; the table's last rows are logits.
            val logits = 4L * manifest.spec.vocabSize
            return MemoryNeed((files * ARRANGED).toLong(), bytes + bytes / 2, WORKING + logits)
        }

        private fun mb(bytes: Long) = "${(bytes + 999_999) / 1_000_000} MB"
    }
}
