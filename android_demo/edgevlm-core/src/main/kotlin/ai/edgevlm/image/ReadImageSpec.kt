package ai.edgevlm.image

import ai.edgevlm.json.Fields
import ai.edgevlm.json.checkSpec
import ai.edgevlm.layout.Packing

/** The content of `preprocess.json`, [data] as `Json.parse` gives it. Throws `EdgeVLMException.BundleError`. */
internal fun readImageSpec(data: Any?, where: String = "preprocess.json"): ImageSpec = Fields.read(data, where) {
    ImageSpec(
        version = int("version"),
        rule = get("rule", ::readRule),
        resample = get("resample", ::readResample),
        background = get("background", ::readColor),
        rescaleFactor = real("rescale_factor"),
        mean = get("mean") { value, at -> Fields.list(value, at, 3, Fields::real) },
        std = get("std") { value, at -> Fields.list(value, at, 3, Fields::real) },
        tokenPixels = nullable("token_pixels", Fields::int),
        tokens = optional("tokens", Fields::int),
        packing = optional("packing", ::readPacking),
        several = optional("several", ::readPictureRule),
        video = optional("video", ::readVideo),
    )
}

private fun readResample(value: Any?, where: String): Resample {
    val text = Fields.text(value, where)
    val known = Resample.entries.firstOrNull { it.id == text }
    checkSpec(known != null, "image", where, Resample.entries.joinToString(" or ") { it.id }) { text }
    return known!!
}

private fun readColor(value: Any?, where: String): Color {
    val (red, green, blue) = Fields.list(value, where, 3, Fields::int)
    return Color(red, green, blue)
}

/** A rule of pictures, which `native_frames` is not. */
private fun readPictureRule(value: Any?, where: String): Rule {
    if (Fields.kind(value) == "native_frames") throw Fields.unknown(value, where)
    return readRule(value, where)
}

internal fun readRule(value: Any?, where: String): Rule {
    val read: Fields.() -> Rule = when (Fields.kind(value)) {
        "stretch" -> fun Fields.(): Rule = Stretch(int("side"))
        "crop" -> fun Fields.(): Rule = Crop(int("shortest"), int("side"))
        "pad" -> fun Fields.(): Rule = Pad(int("side"), get("color", ::readColor))
        "fit" -> fun Fields.(): Rule = Fit(int("side"), int("least"), get("color", ::readColor))
        "tiles_then_whole" -> Fields::tilesThenWhole
        "whole_then_tiles" -> Fields::wholeThenTiles
        "ratio_tiles" -> Fields::ratioTiles
        "best_grid" -> fun Fields.(): Rule = BestGrid(int("side"), get("grids", ::readGrids))
        "covering_tiles" -> fun Fields.(): Rule = CoveringTiles(int("side"), int("most"))
        "within" -> fun Fields.(): Rule = Within(int("unit"), int("longest"))
        "native" -> fun Fields.(): Rule = Native(int("unit"), int("least"), int("most"))
        "native_grown" -> fun Fields.(): Rule = NativeGrown(int("unit"), int("least"), int("most"))
        "native_scaled" -> fun Fields.(): Rule = NativeScaled(int("unit"), int("least"), int("most"))
        "native_or_tiles" -> Fields::nativeOrTiles
        "native_frames" -> Fields::nativeFrames
        "whole_then_slices" -> fun Fields.(): Rule = WholeThenSlices(int("unit"), int("side"), int("most"))
        "filled" -> fun Fields.(): Rule = Filled(int("unit"), int("tokens"))
        "overlapping_tiles" -> fun Fields.(): Rule = OverlappingTiles(int("side"), int("margin"), int("most"))
        "padded_tiles" -> Fields::paddedTiles
        else -> throw Fields.unknown(value, where)
    }
    return Fields.read(value, where) {
        raw("kind")
        read()
    }
}

private fun Fields.tilesThenWhole(): Rule = TilesThenWhole(
    int("side"), nullable("longest_edge", Fields::int), int("max_edge"), int("short_edge_multiple"), flag("split"),
)

private fun Fields.wholeThenTiles(): Rule =
    WholeThenTiles(int("side"), int("longest_edge"), flag("enlarge"), get("whole_resample", ::readResample))

private fun Fields.ratioTiles(): Rule = RatioTiles(
    int("side"), int("least"), int("most"), flag("thumbnail"), optional("longest", Fields::int),
    flag("numbered", false), optional("dense", ::readDense),
)

private fun readDense(value: Any?, where: String): Dense = Fields.read(value, where) {
    val (scale, above, below) = listOf("scale", "above", "below").map { nullable(it, Fields::real) }
    Dense(int("most"), scale, above, below)
}

private fun readGrids(value: Any?, where: String): List<Place> = Fields.list(value, where) { pair, at ->
    val (rows, columns) = Fields.list(pair, at, 2, Fields::int)
    Place(rows, columns)
}

private fun Fields.nativeOrTiles(): Rule = NativeOrTiles(
    int("patch"), int("unit"), int("least"), int("most"), int("large"), int("side"), int("fewest"), int("count"),
    flag("thumbnail"),
)

private fun Fields.nativeFrames(): Rule = NativeFrames(
    int("unit"), get("least", Fields::long), get("most", Fields::long), flag("together", false), int("group", 2),
    optional("cap", Fields::int), int("count", 1),
)

private fun Fields.paddedTiles(): Rule = PaddedTiles(
    int("side"), int("patch"), int("unit"), int("most"), get("color", ::readColor),
    get("whole_resample", ::readResample),
)

private fun readPacking(value: Any?, where: String): Packing = Fields.read(value, where) {
    Packing(
        most = optional("most", Fields::int),
        newline = row("newline"),
        framed = flag("framed", false),
        begin = row("begin"),
        end = row("end"),
        wholeLast = flag("whole_last", false),
        separator = row("separator"),
    )
}

private fun Fields.row(name: String): List<Double> =
    get(name, emptyList()) { value, at -> Fields.list(value, at, Fields::real) }

private fun readVideo(value: Any?, where: String): VideoSpec = Fields.read(value, where) {
    VideoSpec(
        fps = nullable("fps", Fields::real),
        most = int("most"),
        rule = get("rule", ::readRule),
        resample = get("resample", ::readResample),
        open = text("open"),
        close = text("close", ""),
        stamp = text("stamp", ""),
        join = text("join", ""),
        tile = text("tile", ""),
        tileClose = text("tile_close", ""),
        rowJoin = text("row_join", ""),
        intro = text("intro", ""),
        outro = text("outro", ""),
        least = int("least", 1),
        spread = text("spread", "ends"),
        skip = int("skip", 0),
        longest = optional("longest", Fields::real),
        slower = get("slower", emptyList()) { list, at ->
            Fields.list(list, at) { pair, inner ->
                val (after, slow) = Fields.list(pair, inner, 2, Fields::real)
                after to slow
            }
        },
        group = int("group", 1),
        apart = flag("apart", true),
        pace = optional("pace", Fields::real),
        pooled = flag("pooled", false),
        token = text("token", ""),
        likeText = flag("like_text", false),
    )
}
