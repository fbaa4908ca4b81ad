package ai.edgevlm.onnx

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.generate.Cancellation
import ai.edgevlm.generate.Stopped
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import java.io.File

/** A session on one of a bundle's [file]s, whose failures are the SDK's. For one thread at a time. */
internal class Graph private constructor(private val session: OrtSession, private val file: File) : AutoCloseable {
    /** Outputs: [wanted] are made, [pinned] are written where they say. Throws [Stopped] where [cancellation] came. */
    fun run(
        feeds: Map<String, OnnxTensor>,
        wanted: Set<String>,
        pinned: Map<String, OnnxTensor>,
        cancellation: Cancellation,
    ): OrtSession.Result = try {
        OrtSession.RunOptions().use { options ->
            cancellation.during({ options.setTerminate(true) }) { session.run(feeds, wanted, pinned, options) }
        }
    } catch (error: OrtException) {
        if (cancellation.requested) throw Stopped()
        throw EdgeVLMException.RuntimeFailed(
            "The bundle's graphs and its manifest disagree: ONNX Runtime failed on '$file' (${reason(error)}); export the " +
                "bundle again.",
            error,
        )
    }

    /** Names to types and axes, of which free ones are -1. */
    fun inputs(): Map<String, Value> = values(session.inputInfo)

    fun outputs(): Map<String, Value> = values(session.outputInfo)

    private fun values(found: Map<String, ai.onnxruntime.NodeInfo>): Map<String, Value> = found.mapValues { (_, node) ->
        val info = node.info as? ai.onnxruntime.TensorInfo
        Value(info?.type?.name?.lowercase() ?: "no tensor", info?.shape?.map { it.toInt() } ?: emptyList())
    }

    override fun close() {
        session.close()
    }

    /** ONNX Runtime's name of a type, and axes; a free one is -1. */
    data class Value(val type: String, val shape: List<Int>) {
        override fun toString(): String = "$type $shape"
    }

    companion object {
        /** [threads]: 0 is one for each core. [unsigned]: convert signed weights, for a CPU where [Products] says so. */
        fun open(environment: OrtEnvironment, file: File, threads: Int, unsigned: Boolean): Graph = try {
            options(unsigned).use { options ->
                options.setOptimizationLevel(OrtSession.SessionOptions.OptLevel.ALL_OPT)
                options.setIntraOpNumThreads(threads)
                // Threads that spin for a while after the last tile would take the cores from the decoder's.
                if (file.name.startsWith("vision")) options.addConfigEntry("session.force_spinning_stop", "1")
                // Input shapes differ with every token, and the engine would keep one memory plan for each.
                options.setMemoryPatternOptimization(false)
                Graph(environment.createSession(file.path, options), file)
            }
        } catch (error: OrtException) {
            throw EdgeVLMException.RuntimeFailed(
                "ONNX Runtime ${environment.version} cannot load '$file' (${reason(error)}): the file is damaged, incomplete or " +
                    "needs a newer ONNX Runtime; export or copy the bundle again.",
                error,
            )
        }

        fun options(unsigned: Boolean): OrtSession.SessionOptions = OrtSession.SessionOptions().apply {
            setSessionLogLevel(ai.onnxruntime.OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL) // errors are thrown
            if (unsigned) addConfigEntry("session.x64quantprecision", "1")
        }

        private fun reason(error: OrtException): String = error.message.orEmpty().trim().lineSequence().first().take(300)
    }
}
