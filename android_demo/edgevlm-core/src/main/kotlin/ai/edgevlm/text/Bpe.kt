package ai.edgevlm.text

/** Open addressing from pairs of token ids to what a merge makes of them: rank in the high half, id in the low. */
internal class Merges(capacity: Int) {
    private val mask = Integer.highestOneBit(maxOf(8, capacity * 2)) * 2 - 1
    private val keys = LongArray(mask + 1) { EMPTY }
    private val values = LongArray(mask + 1)

    /** A pair that was there before gets the new value. */
    fun put(left: Int, right: Int, rank: Int, id: Int) {
        val key = (left.toLong() shl 32) or right.toLong()
        var at = place(key)
        while (keys[at] != EMPTY && keys[at] != key) at = (at + 1) and mask
        keys[at] = key
        values[at] = (rank.toLong() shl 32) or id.toLong()
    }

    /** -1 where the two do not merge. */
    operator fun get(left: Int, right: Int): Long {
        val key = (left.toLong() shl 32) or right.toLong()
        var at = place(key)
        while (true) {
            if (keys[at] == key) return values[at]
            if (keys[at] == EMPTY) return -1
            at = (at + 1) and mask
        }
    }

    private fun place(key: Long): Int {
        val mixed = key * -0x61c8864680b583ebL
        return (mixed xor (mixed ushr 32)).toInt() and mask
    }

    private companion object {
        const val EMPTY = -1L
    }
}

/** What byte-level BPE writes bytes with: 256 printable characters, GPT-2's `bytes_to_unicode`. */
internal object ByteLetters {
    val letters: IntArray = IntArray(256).also { found ->
        var next = 256
        for (byte in 0 until 256) {
            val printable = byte in 33..126 || byte in 161..172 || byte in 174..255
            found[byte] = if (printable) byte else next++
        }
    }
    private val bytes = IntArray(512) { -1 }.also { for (byte in 0 until 256) it[letters[byte]] = byte }

    /** -1 for a character that is no byte's. */
    fun byte(code: Int): Int = if (code < bytes.size) bytes[code] else -1
}

/** A BPE model (arXiv 1508.07909) as `tokenizers` runs it: by rank, then leftmost. */
internal class Bpe(
    private val vocabulary: Map<String, Int>,
    private val merges: Merges,
    private val unknown: Int, // id; -1: what is not known is left out
    private val fuseUnknown: Boolean,
    byteFallback: Boolean,
    private val wholeWords: Boolean, // a word that is a token is that token
    private val byteLevel: Boolean,
) {
    private val byteIds = IntArray(256) {
        vocabulary[if (byteLevel) textOf(intArrayOf(ByteLetters.letters[it])) else String.format("<0x%02X>", it)] ?: -1
    }
    private val byteFallback = byteFallback && !byteLevel
    private val letters = HashMap<Int, Int>().also { found ->
        if (!byteLevel) {
            for ((token, id) in vocabulary) if (token.isNotEmpty() && token.codePointCount(0, token.length) == 1) found[token.codePointAt(0)] = id
        }
    }

    fun encode(piece: Piece, out: Ints) {
        if (piece.start == piece.end) return
        if (wholeWords) {
            val id = vocabulary[written(piece)]
            if (id != null) {
                out.add(id)
                return
            }
        }
        val word = Ints(piece.end - piece.start + 8)
        if (byteLevel) bytes(piece, word) else characters(piece, word)
        merge(word, out)
    }

    private fun written(piece: Piece): String {
        if (!byteLevel) return textOf(piece.codes, piece.start, piece.end)
        val text = StringBuilder()
        for (i in piece.start until piece.end) utf8(piece.codes[i]) { text.append(ByteLetters.letters[it].toChar()) }
        return text.toString()
    }

    private fun bytes(piece: Piece, word: Ints) {
        var missing = false
        for (i in piece.start until piece.end) {
            utf8(piece.codes[i]) {
                val id = byteIds[it]
                if (id >= 0) {
                    word.add(id)
                    missing = false
                } else if (unknown >= 0) {
                    if (!missing || !fuseUnknown) word.add(unknown)
                    missing = true
                }
            }
        }
    }

    private fun characters(piece: Piece, word: Ints) {
        var pending = false // one unknown token, which the library writes when the next known one comes
        for (i in piece.start until piece.end) {
            val code = piece.codes[i]
            val id = letters[code] ?: -1
            if (id >= 0) {
                if (pending) word.add(unknown)
                pending = false
                word.add(id)
                continue
            }
            if (byteFallback && fallback(code, word)) continue
            if (unknown >= 0) {
                if (pending && !fuseUnknown) word.add(unknown)
                pending = true
            }
        }
        if (pending) word.add(unknown)
    }

    private fun fallback(code: Int, word: Ints): Boolean {
        var all = true
        utf8(code) { if (byteIds[it] < 0) all = false }
        if (all) utf8(code) { word.add(byteIds[it]) }
        return all
    }

    private fun merge(word: Ints, out: Ints) {
        val size = word.size
        val ids = word.toArray()
        if (size < 2) {
            out.addAll(ids)
            return
        }
        val next = IntArray(size) { if (it + 1 < size) it + 1 else -1 }
        val before = IntArray(size) { it - 1 }
        val heap = Heap(size)
        for (i in 0 until size - 1) push(heap, ids, i, i + 1)
        while (heap.size > 0) {
            val top = heap.pop()
            val at = top.toInt()
            val right = next[at]
            if (ids[at] < 0 || right < 0) continue
            val made = merges[ids[at], ids[right]]
            if (made < 0 || made ushr 32 != top ushr 32) continue // one of the two has changed since
            ids[at] = made.toInt()
            ids[right] = -1
            val behind = next[right]
            next[at] = behind
            if (behind >= 0) {
                before[behind] = at
                push(heap, ids, at, behind)
            }
            if (before[at] >= 0) push(heap, ids, before[at], at)
        }
        var at = 0
        while (at >= 0) {
            out.add(ids[at])
            at = next[at]
        }
    }

    private fun push(heap: Heap, ids: IntArray, left: Int, right: Int) {
        val made = merges[ids[left], ids[right]]
        if (made >= 0) heap.push((made ushr 32 shl 32) or left.toLong())
    }

    /** The smallest number first: rank, then place. */
    private class Heap(capacity: Int) {
        private var values = LongArray(maxOf(8, capacity))
        var size = 0
            private set

        fun push(value: Long) {
            if (size == values.size) values = values.copyOf(size * 2)
            var at = size++
            while (at > 0) {
                val parent = (at - 1) / 2
                if (values[parent] <= value) break
                values[at] = values[parent]
                at = parent
            }
            values[at] = value
        }

        fun pop(): Long {
            val top = values[0]
            val last = values[--size]
            var at = 0
            while (true) {
                var child = at * 2 + 1
                if (child >= size) break
                if (child + 1 < size && values[child + 1] < values[child]) child++
                if (values[child] >= last) break
                values[at] = values[child]
                at = child
            }
            values[at] = last
            return top
        }
    }
}

/** The bytes of a code point in UTF-8, as 0 to 255. */
internal inline fun utf8(code: Int, byte: (Int) -> Unit) {
    when {
        code < 0x80 -> byte(code)
        code < 0x800 -> {
            byte(0xC0 or (code shr 6))
            byte(0x80 or (code and 63))
        }
        code < 0x10000 -> {
            byte(0xE0 or (code shr 12))
            byte(0x80 or (code shr 6 and 63))
            byte(0x80 or (code and 63))
        }
        else -> {
            byte(0xF0 or (code shr 18))
            byte(0x80 or (code shr 12 and 63))
            byte(0x80 or (code shr 6 and 63))
            byte(0x80 or (code and 63))
        }
    }
}
