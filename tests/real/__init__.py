"""Everything that a real vLLM shows: installed, started and asked by `./just vllm`, skipped by every other recipe."""
