package ai.edgevlm.image

import ai.edgevlm.Vectors
import ai.edgevlm.int
import kotlin.random.Random
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** What Pillow finds. */
class ExifTest {
    private val vectors = Vectors.json("android_demo/vectors/exif.json")

    private fun bytes(hex: Any?): ByteArray = (hex as String).chunked(2).map { it.toInt(16).toByte() }.toByteArray()

    private val base = bytes(vectors["jpeg"])

    private fun jpeg(segments: ByteArray) = base.copyOf(2) + segments + base.copyOfRange(2, base.size)

    @Test
    fun `JPEG files give the orientation that Pillow finds`() {
        val cases = vectors["segments"] as List<*>
        assertTrue(cases.size > 400)
        for ((hex, expected) in cases.map { it as List<*> }) assertEquals(expected.int(), Exif.orientation(jpeg(bytes(hex))), hex as String)
    }

    @Test
    fun `PNG, WebP and others, too`() {
        for ((hex, expected) in (vectors["files"] as List<*>).map { it as List<*> }) assertEquals(expected.int(), Exif.orientation(bytes(hex)), hex as String)
    }

    @Test
    fun `no bytes are a crash`() {
        val random = Random(1)
        val files = (vectors["files"] as List<*>).map { bytes((it as List<*>)[0]) } + (vectors["segments"] as List<*>).map { jpeg(bytes((it as List<*>)[0])) }
        repeat(30_000) {
            val file = files[random.nextInt(files.size)].copyOf()
            if (file.isEmpty()) return@repeat
            repeat(1 + random.nextInt(4)) { file[random.nextInt(minOf(file.size, 200))] = random.nextInt().toByte() }
            assertTrue(Exif.orientation(file.copyOf(random.nextInt(file.size + 1))) in 1..8)
        }
    }
}
