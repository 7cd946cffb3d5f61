# Run the task of inspect_task.py on `demur serve`, then on a guard in inspect's own process.

inspect eval inspect_task.py --model demur/smollm2-135m-instruct --model-base-url http://127.0.0.1:8000/v1

inspect eval inspect_task.py --model demur-local/embedded -M on_flagged=refuse
