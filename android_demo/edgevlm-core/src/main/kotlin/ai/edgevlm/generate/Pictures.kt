package ai.edgevlm.generate

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.image.ImageSpec
import ai.edgevlm.image.RgbImage
import ai.edgevlm.image.ViewTokens
import ai.edgevlm.layout.Frame
import ai.edgevlm.layout.Rows
import java.security.MessageDigest

/** A picture, prepared: what a prompt and an encoder need of it. [views]: none of one that there was no room for. */
internal class Seen(val tokens: List<ViewTokens>, val frame: Frame, val views: List<RgbImage>, val keys: List<String>) {
    val count: Int get() = tokens.sumOf { it.rows * it.columns }
}

/**
 * Prepared pictures by the sha256 of their pixels, and features by that of their views', within [limit] bytes; 0 keeps
 * nothing. What was used least recently goes first. Of one bundle; any thread may use it.
 */
public class PictureCache(public val limit: Long = LIMIT) {
    private class Kept(val bytes: Long, val value: Any)

    private val kept = LinkedHashMap<Any, Kept>(16, 0.75f, true)

    /** Bytes in memory. */
    public var held: Long = 0
        private set

    init {
        if (limit < 0) throw EdgeVLMException("The limit of the picture cache is $limit: give a number of bytes, or 0.")
    }

    /** Forget everything. */
    public fun clear() {
        synchronized(this) {
            kept.clear()
            held = 0
        }
    }

    /** [room]: image tokens that the context has left; of a picture that takes more, only its tokens are made. */
    internal fun look(picture: RgbImage, spec: ImageSpec, several: Boolean, maxTiles: Int?, room: Int): Seen {
        val key = Triple(digest(picture), several, maxTiles)
        (get(key) as Seen?)?.let { return it }
        val planned = spec.plan(picture.width, picture.height, maxTiles)
        val tokens = spec.viewTokens(planned, picture.width, picture.height)
        val frame = Frame.of(picture.width, picture.height, planned)
        val counted = Seen(tokens, frame, emptyList(), emptyList())
        if (counted.count >= room) return counted
        val views = spec.cut(picture, planned)
        return Seen(tokens, frame, views, views.map(::digest)).also { seen -> put(key, seen, views.sumOf { it.bytes.size.toLong() }) }
    }

    /** Each view's features, from view [start] on. */
    internal fun features(encoder: Encoder, prompt: Prompt, start: Int, cancellation: Cancellation): List<Rows> =
        (start until prompt.views.size).map { number ->
            if (cancellation.requested) throw Stopped()
            val found = get(prompt.keys[number]) as Rows? ?: encoder.encode(prompt.views[number], cancellation)
            found.also { put(prompt.keys[number], it, 4L * it.values.size) }
        }

    private fun get(key: Any): Any? = synchronized(this) { kept[key]?.value }

    private fun put(key: Any, value: Any, bytes: Long) {
        if (bytes > limit) return
        synchronized(this) {
            held += bytes - (kept.put(key, Kept(bytes, value))?.bytes ?: 0)
            val oldest = kept.entries.iterator()
            while (held > limit) {
                held -= oldest.next().value.bytes
                oldest.remove()
            }
        }
    }

    private companion object {
        const val LIMIT = 64L shl 20 // 4 pictures of 17 tiles of 512 pixels, or 60 of one, with their features

        fun digest(picture: RgbImage): String {
            val digest = MessageDigest.getInstance("SHA-256")
            digest.update("${picture.width} ${picture.height} ".toByteArray())
            return String(digest.digest(picture.bytes), Charsets.ISO_8859_1)
        }
    }
}
