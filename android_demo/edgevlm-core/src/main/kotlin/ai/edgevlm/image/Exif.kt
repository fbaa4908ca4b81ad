package ai.edgevlm.image

/**
 * The orientation that a picture file gives, as Pillow's `getexif()` finds it: in EXIF, or else in XMP, of JPEG, PNG (its
 * `eXIf` chunk) and WebP.
 */
public object Exif {
    /** 2 to 8, which [RgbImage.oriented] takes; 1 for a picture that is upright, or does not say. */
    public fun orientation(file: ByteArray): Int {
        val found = try {
            val blocks = Blocks()
            when {
                starts(file, 0, "\u00ff\u00d8\u00ff") -> jpeg(file, blocks)
                starts(file, 0, "\u0089PNG\r\n\u001a\n") -> png(file, blocks)
                starts(file, 0, "RIFF") && starts(file, 8, "WEBP") -> webp(file, blocks)
            }
            blocks.exif?.let(::inTiff) ?: blocks.xmp?.let(::inXmp) ?: 1
        } catch (_: Damaged) {
            1
        }
        return if (found in 2..8) found else 1
    }

    private class Blocks(var exif: ByteArray? = null, var xmp: ByteArray? = null)

    /** The value cannot be read: the picture is upright, whatever else it says. */
    private class Damaged : Exception()

    private fun jpeg(file: ByteArray, blocks: Blocks) {
        var at = 2
        while (at + 4 <= file.size) {
            if (file[at] != FF) {
                at++
                continue
            }
            val marker = file[at + 1].toInt() and 255
            if (marker == 0xFF) {
                at++
                continue
            }
            at += 2
            if (marker == 0 || marker == 0xC8 || marker in 0xD0..0xD9 || marker in 0xF0..0xFD) continue
            if (marker == 0xDA) return
            if (at + 2 > file.size) return
            val end = at + maxOf(2, big(file, at, 2).toInt())
            if (end > file.size) return
            val from = at + 2
            if (marker == 0xE1 && end - from >= 6 && starts(file, from, EXIF)) {
                blocks.exif = blocks.exif?.plus(file.copyOfRange(from + 6, end)) ?: file.copyOfRange(from, end)
            } else if (marker == 0xE1 && starts(file, from, XMP)) {
                if (from + XMP.length <= end) blocks.xmp = file.copyOfRange(from + XMP.length, end)
            }
            at = end
        }
    }

    private fun png(file: ByteArray, blocks: Blocks) {
        var at = 8
        while (at + 12 <= file.size) {
            val size = big(file, at, 4)
            if (size > file.size - at - 12) return
            val from = at + 8
            val end = from + size.toInt()
            if (starts(file, at + 4, "IDAT") || starts(file, at + 4, "IEND")) return
            if (starts(file, at + 4, "eXIf")) blocks.exif = EXIF.toByteArray(Charsets.ISO_8859_1) + file.copyOfRange(from, end)
            at = end + 4
        }
    }

    private fun webp(file: ByteArray, blocks: Blocks) {
        var at = 12
        while (at + 8 <= file.size) {
            val size = little(file, at + 4, 4)
            if (size > file.size - at - 8) return
            val end = at + 8 + size.toInt()
            if (starts(file, at, "EXIF") && blocks.exif == null) blocks.exif = file.copyOfRange(at + 8, end)
            if (starts(file, at, "XMP ") && blocks.xmp == null) blocks.xmp = file.copyOfRange(at + 8, end)
            at = end + (size and 1).toInt()
        }
    }

    /** The orientation in a TIFF header and its first directory; null where none is given. */
    private fun inTiff(block: ByteArray): Int? {
        var from = 0
        while (from < 12 && starts(block, from, EXIF)) from += 6
        if (from == block.size) return null
        val data = block.copyOfRange(from, block.size)
        if (data.size < 8 || HEADS.none { starts(data, 0, it) }) throw Damaged()
        val number = if (data[0] == 'I'.code.toByte()) ::little else ::big
        var at = number(data, 4, 4)
        if (at + 2 > data.size) return null
        val count = number(data, at.toInt(), 2).toInt()
        at += 2
        var read = 0L
        repeat(count) {
            if (at + 12 > data.size) return null
            val entry = at.toInt()
            at += 12
            val tag = number(data, entry, 2).toInt()
            val type = number(data, entry + 2, 2).toInt()
            val unit = UNITS[type] ?: return@repeat
            val size = number(data, entry + 4, 4) * unit
            if (size == 0L) return@repeat
            var place = entry + 8L
            if (size > 4) {
                read += size
                if (read > data.size) return@repeat
                place = number(data, entry + 8, 4)
                if (place + size > data.size) return null
            }
            if (tag == ORIENTATION) return value(data, place.toInt(), size.toInt(), type, number)
        }
        return null
    }

    private fun value(data: ByteArray, at: Int, size: Int, type: Int, number: (ByteArray, Int, Int) -> Long): Int {
        val bits = number(data, at, if (type in TEXTS) 1 else UNITS.getValue(type).coerceAtMost(8).let { if (type in RATIONALS) 4 else it })
        val real = when (type) {
            in TEXTS -> return text(String(data, at, size, Charsets.ISO_8859_1), type)
            6 -> bits.toByte().toDouble()
            8 -> bits.toShort().toDouble()
            9 -> bits.toInt().toDouble()
            5, 10 -> {
                val below = number(data, at + 4, 4)
                val (a, b) = if (type == 10) bits.toInt().toDouble() to below.toInt().toDouble() else bits.toDouble() to below.toDouble()
                a / b
            }
            11 -> Float.fromBits(bits.toInt()).toDouble()
            12 -> Double.fromBits(bits)
            else -> bits.toDouble()
        }
        return if (real.isNaN()) throw Damaged() else real.toInt()
    }

    /** A number in words, as Python's `int` reads one. */
    private fun text(text: String, type: Int): Int {
        val trimmed = (if (type == 2 && text.endsWith('\u0000')) text.dropLast(1) else text).trim { it in " \t\n\u000b\u000c\r" }
        return if (Regex("[+]?[0-9]{1,9}").matches(trimmed)) trimmed.removePrefix("+").toInt() else throw Damaged()
    }

    private fun inXmp(block: ByteArray): Int? =
        Regex("tiff:Orientation(=\"|>)([0-9])").find(String(block, Charsets.ISO_8859_1))?.groupValues?.get(2)?.toInt()

    private fun starts(data: ByteArray, at: Int, text: String): Boolean =
        at + text.length <= data.size && text.indices.all { data[at + it] == text[it].code.toByte() }

    private fun big(data: ByteArray, at: Int, count: Int): Long = (0 until count).fold(0L) { all, i -> all shl 8 or (data[at + i].toLong() and 255) }

    private fun little(data: ByteArray, at: Int, count: Int): Long =
        (count - 1 downTo 0).fold(0L) { all, i -> all shl 8 or (data[at + i].toLong() and 255) }

    private const val FF = 0xFF.toByte()
    private const val EXIF = "Exif\u0000\u0000"
    private const val XMP = "http://ns.adobe.com/xap/1.0/\u0000"
    private const val ORIENTATION = 0x0112
    private val HEADS = listOf("MM\u0000*", "II*\u0000", "MM*\u0000", "II\u0000*", "MM\u0000+")

    /** Bytes of one value of each type of TIFF 6.0 that Pillow reads. */
    private val UNITS = mapOf(1 to 1, 2 to 1, 3 to 2, 4 to 4, 5 to 8, 6 to 1, 7 to 1, 8 to 2, 9 to 4, 10 to 8, 11 to 4, 12 to 8, 13 to 4, 16 to 8)
    private val TEXTS = setOf(1, 2, 7)
    private val RATIONALS = setOf(5, 10)
}
