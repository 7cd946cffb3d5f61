# Ask the proxy of litellm_proxy.yaml, which listens at port 4000.

curl -si http://127.0.0.1:4000/v1/chat/completions -H 'Authorization: Bearer sk-made-up' -H 'Content-Type: application/json' -d '{
    "model": "guarded",
    "messages": [{"role": "user", "content": "Name three rivers."}]
}'

curl -siN http://127.0.0.1:4000/v1/chat/completions -H 'Authorization: Bearer sk-made-up' -H 'Content-Type: application/json' -d '{
    "model": "guarded",
    "messages": [{"role": "user", "content": "Name three rivers."}],
    "stream": true
}'

curl -s http://127.0.0.1:4000/v1/moderations -H 'Authorization: Bearer sk-made-up' -H 'Content-Type: application/json' -d '{
    "model": "guard",
    "input": "Name three rivers."
}'
