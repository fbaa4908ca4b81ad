"""`edgevlm serve`: a bundle as a server that OpenAI's clients can ask."""

from __future__ import annotations

from pathlib import Path

import click

from edgevlm.commands.arguments import bundle_folder, warn_if_failed
from edgevlm.errors import EdgeVLMError, install_hint
from edgevlm.io.console import note
from edgevlm.io.regular import read_regular

LARGEST_BODY = 1024  # MiB
LARGEST_KEY = 1024  # bytes of a file with an API key


@click.command()
@click.argument("bundle")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="0.0.0.0 is every network.")
@click.option("--port", type=int, default=8080, show_default=True, metavar="N", help="0 is any that is free.")
@click.option("--api-key", metavar="KEY", help="What requests have to show; seen in the list of processes.")
@click.option("--api-key-file", metavar="FILE", help="The same, out of a file's first line.")
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="Another name of the model. May be repeated.")
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME", help="Another name of this server, as by a proxy."
)
@click.option("--allow-image-host", "image_hosts", multiple=True, metavar="HOST", help="Fetch pictures from there.")
@click.option("--parallel", type=int, default=1, show_default=True, metavar="N", help="Answers at a time.")
@click.option("--queue", type=int, default=8, show_default=True, metavar="N", help="Questions that may wait.")
@click.option("--runtime", metavar="NAME", help="onnxruntime, llama.cpp, coreml, eager, or two: encoder+decoder.")
@click.option("--device", default="cpu", show_default=True, metavar="[cpu|gpu|npu]", help="What to run on.")
@click.option("--threads", type=int, metavar="N", help="CPU threads of all answers together.  [default: all cores]")
@click.option("--max-tokens", type=int, default=1024, show_default=True, metavar="N", help="Where a request has none.")
@click.option("--tiles", type=int, metavar="N", help="Most tiles per picture; 1 is fastest.  [default: the model's]")
@click.option("--max-pictures", type=int, default=8, show_default=True, metavar="N", help="Of one request.")
@click.option("--max-body", type=int, default=20, show_default=True, metavar="MIB", help="Of one request.")
@click.option("--cache", metavar="DIR", help="Keep what was computed of pictures there, for later starts.")
@click.option("--reuse/--no-reuse", default=True, help="Keep what a question shares with the one before.")
def serve(
    bundle: str,
    host: str,
    port: int,
    api_key: str | None,
    api_key_file: str | None,
    aliases: tuple[str, ...],
    hosts: tuple[str, ...],
    image_hosts: tuple[str, ...],
    parallel: int,
    queue: int,
    runtime: str | None,
    device: str,
    threads: int | None,
    max_tokens: int,
    tiles: int | None,
    max_pictures: int,
    max_body: int,
    cache: str | None,
    reuse: bool,
) -> None:
    """Answer requests for chat completions about pictures, as OpenAI's API has them, with the model in BUNDLE.

    A page to try it is at the address that is printed. Pictures come inside of requests, as data: URLs. Nothing leaves
    this machine, and nobody else reaches the server unless --host says so.
    """
    if api_key is not None and api_key_file is not None:
        raise EdgeVLMError("--api-key and --api-key-file are two keys: give one.")
    if api_key_file is not None:
        api_key = _read_key(Path(api_key_file))
    if not 1 <= max_body <= LARGEST_BODY:
        raise EdgeVLMError(f"--max-body is {max_body}: give 1 to {LARGEST_BODY}, in MiB.")
    folder = bundle_folder(bundle)
    try:
        from edgevlm.serve.options import ServeOptions
        from edgevlm.serve.server import Server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "h11", "prometheus_client"):
            raise
        raise EdgeVLMError(f"The server needs {error.name}, which is not installed: {install_hint('serve')}.") from None
    options = ServeOptions(
        host=host, port=port, api_key=api_key, aliases=aliases, hosts=hosts, image_hosts=image_hosts,
        parallel=parallel, queue=queue, runtime=runtime, device=device, threads=threads, max_tokens=max_tokens,
        max_tiles=tiles, max_pictures=max_pictures, max_body=max_body << 20,
        cache_folder=None if cache is None else Path(cache), reuse=reuse,
    )  # fmt: skip
    if host not in ("127.0.0.1", "localhost", "::1") and api_key is None:
        note(f"Warning: everyone who reaches {host} may ask, without a key: add --api-key-file FILE.")

    from edgevlm.bundle.manifest import open_bundle

    Server(warn_if_failed(open_bundle(folder)), options).serve_forever()


def _read_key(path: Path) -> str:
    try:
        content = read_regular(path, LARGEST_KEY, "write the API key into it, as one line")
    except FileNotFoundError:
        raise EdgeVLMError(f"'{path}' does not exist: write the API key into it, as one line.") from None
    except OSError as error:
        raise EdgeVLMError(f"'{path}' cannot be read ({error.strerror}): check its permissions.") from None
    return content.decode("utf-8", "replace").partition("\n")[0].strip()
