"""Address and API key of the endpoint of the tests in this folder."""

import httpx2

from instruct_ray.serving.api_keys import make_key

PORT = 8765
URL = f"http://127.0.0.1:{PORT}/v1"
KEY = make_key()
client = httpx2.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=120)
