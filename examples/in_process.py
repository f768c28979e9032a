"""Prompts in this process, without the HTTP hop: `python examples/in_process.py http://localhost:8002`.

The settings are those of the sidecar (config/sidecar.yaml, SIDECAR_… in the environment), and so are cache, retries,
circuit breaker and policy; only the listeners are missing. The file store is for one process alone, so it is left out.
"""

import asyncio
import os
import sys

from sidecar.config_file import default_path, load
from sidecar.core.errors import PromptError
from sidecar.wiring import open_core


async def main(upstream_url: str) -> int:
    """Ask twice: the second prompt is made from what the first one brought."""
    settings = load(
        default_path(os.environ), environ=os.environ, flags={"upstream.url": upstream_url, "store.kind": "none"}
    )
    async with open_core(settings) as core:
        for question in ("Why is the sky blue?", "Why is the sea salty?"):
            try:
                rendered = await core.manager.get_rendered_prompt(
                    user_id=1001,
                    node_name="generating_content",
                    dynamic_context={"input_content": question},
                )
            except PromptError as error:
                print(f"{error.status}: {error.detail}", file=sys.stderr)
                return 1
            how = "from the cache" if rendered.provenance.hit else "asked the config service"
            print(f"--- {how}, {rendered.provenance.age:.1f} s old\n{rendered.prompt}\n")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8002")))
