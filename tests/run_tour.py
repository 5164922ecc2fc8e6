"""Run all measurements of the model tour on the model in a folder; prints what came out, for test_published_shape."""

import json
import sys

from helpers.core.stories import Story

STORIES = [
    Story("Once there was a small red boat. It could not swim. A kind duck came and said, “I will help you.”\nThey went home."),
    Story("Ann has a big hat. The wind takes it away! Ann runs and runs. At last she finds her hat in a tree."),
]  # fmt: skip
EMBEDDINGS = {"token": "hook_embed", "position": "hook_pos_embed"}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
