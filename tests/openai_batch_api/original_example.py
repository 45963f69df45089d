"""The example of OpenaiBatchAPI's documentation, as it stands there but for import and address.

Run with the address as its argument, and `original` behind it for the original itself.
"""

import sys

if sys.argv[2:] == ["original"]:
    from openai_batch_api import OpenaiBatchAPI
else:
    from batchframe.openai_batch_api import OpenaiBatchAPI
