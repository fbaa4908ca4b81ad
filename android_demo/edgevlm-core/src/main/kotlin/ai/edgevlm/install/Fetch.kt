package ai.edgevlm.install

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.bundle.FileInfo
import java.io.ByteArrayOutputStream
import java.io.Closeable
import java.io.File
import java.io.FileInputStream
import java.io.FileOutputStream
import java.io.IOException
import java.nio.file.FileSystemException
import java.security.MessageDigest

/** One file at a time from a source, however often it is cut off. */
internal class Fetch(
    private val source: BundleSource,
    private val options: InstallOptions,
    private val cancellation: Cancellation,
    private val moved: (Long) -> Unit,
) : Closeable {
    private val reader = Reader(cancellation)
    private val buffer = ByteArray(1 shl 16)

    /** The most bytes that a file had. */
    private var reached = 0L

    /** A small file, whole. */
    fun small(name: String, largest: Int): ByteArray = trying(name, { 0 }) {
        val out = ByteArrayOutputStream()
        reader.during({ source.open(name, 0, cancellation) }) { part ->
            if ((part.left ?: 0) > largest) throw tooLong(name, largest.toLong())
            each(part) { count ->
                if (out.size() + count > largest) throw tooLong(name, largest.toLong())
                out.write(buffer, 0, count)
            }
            if (part.left != null && out.size().toLong() != part.left) throw IOException("the connection was cut")
        }
        out.toByteArray()
    }

    /**
     * [file] becomes the file [name], with its hash; what is there of it is gone on from, and fetched anew where the whole
     * has another hash.
     */
    fun large(name: String, info: FileInfo, file: File) {
        val had = file.length()
        moved(had)
        if (had < info.size || !file.exists()) fill(name, info, file)
        if (sha256(file) == info.sha256) return
        if (had > 0) {
            moved(-file.length())
            remove(file)
            fill(name, info, file)
            if (sha256(file) == info.sha256) return
        }
        moved(-file.length())
        remove(file)
        throw EdgeVLMException.BundleError(
            "The file '$name' of ${source.place} is another than its manifest says (its sha256 differs): it was changed or damaged; try again, or tell whoever offers it.",
        )
    }

    private fun fill(name: String, info: FileInfo, file: File) {
        reached = file.length()
        trying(name, { reached }) {
            val from = file.length()
            try {
                reader.during({ source.open(name, from, cancellation) }) { append(name, info, file, from, it) }
            } catch (error: RangeRefused) {
                moved(-from)
                remove(file)
                throw error
            }
            if (file.length() < info.size) throw IOException("the connection was cut after ${file.length()} of ${info.size} bytes")
        }
    }

    private fun append(name: String, info: FileInfo, file: File, from: Long, part: Part) {
        if (part.left != null && part.start + part.left != info.size) {
            throw EdgeVLMException.BundleError(
                "The file '$name' of ${source.place} has ${part.start + part.left} bytes, and its manifest says ${info.size}: it was changed or " +
                    "damaged; try again, or tell whoever offers it.",
            )
        }
        if (part.start != 0L && part.start != from) throw IOException("the source began elsewhere")
        if (part.start != from) moved(-from)
        local(file) { FileOutputStream(file, part.start == from) }.use { out ->
            var at = part.start
            each(part) { count ->
                at += count
                if (at > info.size) throw tooLong(name, info.size)
                local(file) { out.write(buffer, 0, count) }
                reached = maxOf(reached, at)
                moved(count.toLong())
            }
            local(file) { out.fd.sync() }
        }
    }

    /** Each filled buffer; slower than a source may be, it is an error. */
    private inline fun each(part: Part, use: (Int) -> Unit) {
        var began = System.nanoTime()
        var got = 0L
        while (true) {
            val count = reader.call { part.stream.read(buffer) }
            if (count < 0) return
            use(count)
            got += count
            val passed = (System.nanoTime() - began) / 1_000_000
            if (passed < options.slowMillis) continue
            if (got * 1000 < options.slowest * passed) throw IOException("fewer than ${options.slowest} bytes a second came")
            began = System.nanoTime()
            got = 0
        }
    }

    /** [act] until it is done; tries that brought it next to nowhere by [reached] are counted. */
    private fun <T> trying(name: String, reached: () -> Long, act: () -> T): T {
        var failures = 0
        while (true) {
            val before = reached()
            try {
                return act()
            } catch (error: IOException) {
                cancellation.check()
                failures = if (reached() - before >= ENOUGH) 1 else failures + 1
                if (source.again(failures, cancellation)) continue
                throw EdgeVLMException("The file '$name' could not be got from ${source.place} (${reason(error)}): try again; what was fetched is kept.", error)
            }
        }
    }

    private fun tooLong(name: String, size: Long) = EdgeVLMException.BundleError(
        "The file '$name' of ${source.place} is longer than the $size bytes that it may have: it was changed or damaged; do not use this bundle.",
    )

    private fun sha256(file: File): String {
        val digest = MessageDigest.getInstance("SHA-256")
        FileInputStream(file).use { stream ->
            while (true) {
                cancellation.check()
                val count = stream.read(buffer)
                if (count < 0) break
                digest.update(buffer, 0, count)
            }
        }
        return digest.digest().joinToString("") { (it.toInt() and 255 or 256).toString(16).substring(1) }
    }

    /** [act] on this device's own files: trying again does not help. */
    private inline fun <T> local(file: File, act: () -> T): T = try {
        act()
    } catch (error: IOException) {
        throw EdgeVLMException("'$file' cannot be written (${reason(error)}): make room or choose another folder; what was fetched is kept.", error)
    }

    override fun close(): Unit = reader.close()

    private fun remove(file: File) {
        if (!file.delete() && file.exists()) throw EdgeVLMException("'$file' cannot be removed: remove it.")
    }

    companion object {
        private const val ENOUGH = 1L shl 16

        fun reason(error: IOException): String {
            val text = (error as? FileSystemException)?.reason ?: error.message ?: error.javaClass.simpleName
            return text.lineSequence().first().take(200)
        }
    }
}
