package ai.edgevlm

import ai.edgevlm.bundle.Bundle
import ai.edgevlm.generate.Model
import ai.edgevlm.generate.PictureCache
import ai.edgevlm.onnx.OrtEngine
import java.io.File

/**
 * How a bundle is loaded.
 *
 * [threads]: 0 is one for each core. [verify]: hash all files, weights too, and not only those up to 4 MiB. [portable]:
 * graphs of standard operators (true) or of ONNX Runtime's own (false); null: its own, except where this version of it
 * computes them wrong. [reuse]: whether a question goes on from what it shares with the one before; false computes every
 * prompt whole. [pictureBytes]: memory for pictures that may be asked about again.
 */
public data class LoadOptions(
    val threads: Int = 0,
    val verify: Boolean = true,
    val portable: Boolean? = null,
    val reuse: Boolean = true,
    val pictureBytes: Long = 64L shl 20,
) {
    init {
        if (threads !in 0..256) throw EdgeVLMException("threads is $threads: give a number from 1 to 256, or 0 for one per core.")
    }
}

/** Questions about pictures, answered on this device. */
public object EdgeVLM {
    /**
     * Load a bundle's folder; takes seconds, so call it off the main thread. Close what it gives.
     *
     * Throws [EdgeVLMException.BundleError] where it is no bundle or a file is changed, Unsupported for a model that this
     * SDK or its engine lacks, RuntimeFailed for a graph that the engine does not load.
     */
    public fun load(bundle: File, options: LoadOptions = LoadOptions()): Model {
        val pictures = PictureCache(options.pictureBytes)
        val opened = Bundle.open(bundle, options.verify)
        val runtime = OrtEngine.open(opened, options.threads, options.portable)
        try {
            return Model(opened, runtime, pictures, options.reuse)
        } catch (error: Throwable) {
            runtime.close()
            throw error
        }
    }
}
