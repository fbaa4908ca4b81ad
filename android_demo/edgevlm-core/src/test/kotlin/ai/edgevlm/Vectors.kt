package ai.edgevlm

import ai.edgevlm.image.RgbImage
import ai.edgevlm.json.Json
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import javax.imageio.ImageIO

/** The repository's own files that the tests are held to. */
internal object Vectors {
    private val root = File(System.getProperty("edgevlm.root") ?: error("run the tests by Maven"))

    fun file(path: String): File = File(root, path)

    @Suppress("UNCHECKED_CAST")
    fun json(path: String): Map<String, Any?> = Json.parse(file(path).readBytes(), 16 shl 20) as Map<String, Any?>

    /** A PNG of 8-bit RGB. */
    fun png(path: String): RgbImage {
        val image = ImageIO.read(file(path))
        val samples = image.raster.getPixels(0, 0, image.width, image.height, null as IntArray?)
        check(image.raster.numBands == 3)
        return RgbImage(image.width, image.height, ByteArray(samples.size) { samples[it].toByte() })
    }

    /** The picture that `tests/vectors/README.md` defines. */
    fun picture(width: Int, height: Int): RgbImage {
        val bytes = ByteArray(width * height * 3)
        var to = 0
        for (y in 0 until height) {
            for (x in 0 until width) {
                for (c in 0 until 3) {
                    val smooth = (x * x * (1 + c) + y * y * (3 - c) + 64 * x + 32 * y) ushr 6
                    val rough = ((x * 73856093) xor (y * 19349663) xor (c * 83492791)) ushr 27
                    bytes[to++] = (smooth + rough).toByte()
                }
            }
        }
        return RgbImage(width, height, bytes)
    }

    fun sha256(parts: Iterable<ByteArray>): String {
        val digest = MessageDigest.getInstance("SHA-256")
        for (part in parts) digest.update(part)
        return digest.digest().joinToString("") { "%02x".format(it) }
    }

    fun sha256(bytes: ByteArray): String = sha256(listOf(bytes))

    /** The beginning that those of `android_demo/vectors` have of it. */
    fun sha(parts: Iterable<ByteArray>): String = sha256(parts).take(12)

    fun sha(bytes: ByteArray): String = sha(listOf(bytes))

    fun bytes(values: FloatArray): ByteArray {
        val out = ByteBuffer.allocate(values.size * 4).order(ByteOrder.LITTLE_ENDIAN)
        out.asFloatBuffer().put(values)
        return out.array()
    }

    fun bytes(values: DoubleArray): ByteArray = bytes(LongArray(values.size) { values[it].toRawBits() })

    fun bytes(values: LongArray): ByteArray {
        val out = ByteBuffer.allocate(values.size * 8).order(ByteOrder.LITTLE_ENDIAN)
        out.asLongBuffer().put(values)
        return out.array()
    }

    fun bytes(values: BooleanArray): ByteArray = ByteArray(values.size) { if (values[it]) 1 else 0 }
}

@Suppress("UNCHECKED_CAST")
internal fun Any?.obj(): Map<String, Any?> = this as Map<String, Any?>

@Suppress("UNCHECKED_CAST")
internal fun Any?.objects(): List<Map<String, Any?>> = this as List<Map<String, Any?>>

internal fun Any?.int(): Int = (this as Long).toInt()

@Suppress("UNCHECKED_CAST")
internal fun Any?.ints(): List<Int> = (this as List<Long>).map { it.toInt() }

/** The numbers of a list, whole or not. */
internal fun Any?.floats(): FloatArray = (this as List<*>).map { (it as Number).toFloat() }.toFloatArray()

/** What `android_demo/tools/drawn.py` draws. */
internal class Numbers(private var state: Long) {
    fun below(end: Int): Int {
        state = (state * 1103515245 + 12345) and 0x7fffffff
        return ((state shr 8) % end).toInt()
    }

    fun side(): Int = 1 + below(intArrayOf(60, 700, 5000, 40000)[below(4)])

    fun features(count: Int, width: Int): FloatArray = FloatArray(count * width) { (below(2001) - 1000).toFloat() / 1000f }
}
