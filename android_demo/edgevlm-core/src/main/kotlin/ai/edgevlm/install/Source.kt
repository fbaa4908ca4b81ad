package ai.edgevlm.install

import java.io.Closeable
import java.io.File
import java.io.FileInputStream
import java.io.IOException
import java.io.InputStream

/** Where the files of a bundle come from. */
public interface BundleSource {
    /** What sentences call it. */
    public val place: String

    /**
     * A file of the bundle by its name in the manifest, or `manifest.json`, from byte [from] on, or from its beginning.
     *
     * Throws IOException for what may pass, and EdgeVLMException for what will not.
     */
    public fun open(name: String, from: Long, cancellation: Cancellation): Part

    /** Whether to try again, after [failures] tries in a row that brought next to nothing; it may wait. */
    public fun again(failures: Int, cancellation: Cancellation): Boolean = false
}

/** A file from byte [start] on. [left]: bytes from there to its end; null where that is not known. */
public class Part(public val start: Long, public val left: Long?, public val stream: InputStream, private val release: Closeable = stream) : Closeable {
    override fun close(): Unit = release.close()
}

/** Any place that gives streams: an app's assets are `StreamSource("assets") { assets.open("bundle/$it") }`. */
public class StreamSource(override val place: String, private val stream: (String) -> InputStream) : BundleSource {
    override fun open(name: String, from: Long, cancellation: Cancellation): Part = Part(0, null, stream(name))
}

/** A folder of the device. */
public class FolderSource(private val folder: File) : BundleSource {
    override val place: String get() = "the folder '$folder'"

    override fun open(name: String, from: Long, cancellation: Cancellation): Part {
        val file = File(folder, name)
        if (!file.isFile) throw java.io.FileNotFoundException("it has no file '$name'")
        val stream = FileInputStream(file)
        val left = file.length() - from
        try {
            if (left < 0) return Part(0, file.length(), stream)
            stream.channel.position(from)
            return Part(from, left, stream)
        } catch (error: IOException) {
            stream.close()
            throw error
        }
    }
}
