package ai.edgevlm.onnx

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession

/**
 * Whether ONNX Runtime's integer kernels multiply exactly on this processor, found by a trial: Python's
 * `edgevlm.runtimes.ort.products`, whose graph `products.onnx` is.
 *
 * On x86 with AVX2 but without VNNI, one adds pairs of products in 16 bits and saturates (onnxruntime#6004); there a
 * session converts signed weights when it is made. Phones' processors are exact.
 */
internal object Products {
    private const val WIDTH = 64
    private val ROWS = listOf(1, 5) // a single row has kernels of its own
    private val LARGEST = mapOf("DynamicQuantizeMatMul" to (127 to -127), "MatMulNBits 4" to (7 to -8), "MatMulNBits 8" to (127 to -127))
    private const val EXACT = 1e-6 // of the result: a handful of float32 roundings, at most 6e-8 each

    fun signedSaturates(environment: OrtEnvironment): Boolean {
        val graph = Products::class.java.getResourceAsStream("products.onnx")!!.use { it.readBytes() }
        return Graph.options(unsigned = false).use { options ->
            environment.createSession(graph, options).use { session -> ROWS.any { !exact(environment, session, it) } }
        }
    }

    private fun exact(environment: OrtEnvironment, session: OrtSession, rows: Int): Boolean {
        val ones = ai.edgevlm.layout.FloatTensor(intArrayOf(rows, WIDTH), FloatArray(rows * WIDTH) { 1f })
        return Inputs(environment).use(mapOf("x" to ones)) { feeds ->
            session.run(feeds, LARGEST.keys).use { found ->
                LARGEST.all { (name, codes) ->
                    val values = (found.get(name).get() as OnnxTensor).rows().values
                    values.indices.all { i ->
                        // The largest code and the smallest, in turn: columns are even in number.
                        val sum = WIDTH * (if (i % 2 == 1) codes.first else codes.second)
                        Math.abs(values[i] / sum.toDouble() - 1) <= EXACT
                    }
                }
            }
        }
    }
}
