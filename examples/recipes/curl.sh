# Talk to `demur serve` with curl.

curl -s http://127.0.0.1:8000/readyz

curl -s http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{
    "model": "smollm2-135m-instruct",
    "messages": [{"role": "user", "content": "Name three rivers."}]
}'

curl -sN http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{
    "model": "smollm2-135m-instruct",
    "messages": [{"role": "user", "content": "Name three rivers."}],
    "stream": true
}'

curl -s -o /dev/null -D - http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{
    "model": "smollm2-135m-instruct",
    "messages": [{"role": "user", "content": "Name three rivers."}]
}' | grep -i -e ^HTTP -e ^x-demur

curl -s http://127.0.0.1:8000/v1/moderations -H 'Content-Type: application/json' -d '{
    "input": "Name three rivers."
}'
