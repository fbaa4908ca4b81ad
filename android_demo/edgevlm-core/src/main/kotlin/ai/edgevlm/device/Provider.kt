package ai.edgevlm.device

import ai.edgevlm.EdgeVLMException

/** What an engine may compute on. Only [CPU] gives the tokens that Python gives; the others are for those who measure. */
public enum class Accelerator { CPU, XNNPACK, NNAPI, QNN }

/** An execution provider of ONNX Runtime by its name there, and its options. */
public data class Provider(val name: String, val options: Map<String, String> = emptyMap()) {
    public companion object {
        private const val NNAPI_SINCE = 27

        /**
         * The providers to add to a session, in that order; the CPU comes last, for what the others leave.
         *
         * [available]: the names that the app's build of ONNX Runtime has. [api]: the device's `SDK_INT`. [threads]: 0 leaves
         * their number to the engine. Throws [EdgeVLMException.Unsupported] where the one that was asked for is not there:
         * another is never taken in its place.
         */
        public fun choose(accelerator: Accelerator, available: Set<String>, api: Int, threads: Int = 0): List<Provider> {
            val cpu = Provider("CPUExecutionProvider")
            val first = when (accelerator) {
                Accelerator.CPU -> return listOf(cpu)
                Accelerator.XNNPACK ->
                    Provider("XnnpackExecutionProvider", if (threads > 0) mapOf("intra_op_num_threads" to "$threads") else emptyMap())
                Accelerator.NNAPI -> {
                    if (api < NNAPI_SINCE) throw EdgeVLMException.Unsupported("NNAPI needs Android's API $NNAPI_SINCE, and the device has $api: take the CPU.")
                    Provider("NnapiExecutionProvider")
                }
                Accelerator.QNN -> Provider("QNNExecutionProvider", mapOf("backend_path" to "libQnnHtp.so"))
            }
            if (first.name in available) return listOf(first, cpu)
            throw EdgeVLMException.Unsupported(
                "This build of ONNX Runtime has no ${first.name} (it has ${available.sorted().joinToString(", ")}): take the CPU, or another build.",
            )
        }
    }
}
