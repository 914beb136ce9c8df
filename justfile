# The few words that run everything. Each is a plain command underneath; `./justw` is `just` for a machine without it.

# What stands behind a word reaches its program as it was written: "$@" rather than a text that the shell reads again.
set positional-arguments

python := ".venv/bin/python"

# List the words
[private]
default:
    @{{ just_executable() }} --list --unsorted

# Make .venv with everything that serving, evaluation and tests need (fast when nothing changed)
[group('setup')]
install-deps:
    @scripts/install.sh

# Say whether what the words need is there, in the locked versions
[group('setup')]
check-deps: install-deps
    {{ python }} -m pip --disable-pip-version-check check
    @{{ python }} --version
    @{{ python }} -c 'import cv2, ray, torch; print("ray", ray.__version__, "torch", torch.__version__, "opencv", cv2.__version__)'

# Write requirements.lock from pyproject.toml; with --upgrade in newer versions
[group('setup')]
lock *arguments: install-deps
    .venv/bin/uv pip compile pyproject.toml --all-extras --python-version 3.11 --generate-hashes --quiet \
        --no-annotate --no-header --no-emit-index-url --no-emit-find-links --no-emit-package torch \
        "$@" --output-file requirements.lock

# Make a key: the client gets it, API_KEYS its hash
[group('setup')]
api-key: install-deps
    @{{ python }} -m deployments.api_keys

# Write the messages of the Open Inference Protocol's gRPC out of deployments/inference/open_inference.proto
[group('setup')]
proto: install-deps
    {{ python }} -m grpc_tools.protoc -I . --python_out=. --pyi_out=. deployments/inference/open_inference.proto

# Serve with the real detector, test and evaluate that, sum up, stay until Ctrl-C; with -k on a Kind cluster
[arg('program', long='k8s', short='k', value='kuberay/cluster/dev.sh', help='on a Kind cluster')]
[arg('clean', long, value='--clean', help='with --k8s: on a cluster made anew')]
[arg('kserve', long, value='--kserve', help='without --k8s: detect in the KServe model server, started too')]
[group('run')]
dev program=(python + ' -m serve_app dev') clean='' kserve='': install-deps
    @{{ program }} {{ clean }} {{ kserve }}

# Serve the application: fixed answers, or the real detector with -r
[arg('background', long, short='b', value='--background', help='return once it is ready')]
[arg('real', long, short='r', value='--real', help='detect for real')]
[group('run')]
backend real='' background='': install-deps
    @{{ python }} -m serve_app start {{ real }} {{ background }}

# Serve the detector by KServe's protocols on ports 9090 (REST) and 9091 (gRPC), without the application
[arg('background', long, short='b', value='--background', help='return once it is ready')]
[group('run')]
model-server background='': install-deps
    @{{ python }} -m serve_app model-server {{ background }}

# Bring the database's tables to this version's form (`dev` and `backend` do it themselves)
[group('run')]
migrate *arguments: install-deps
    @{{ python }} -m circles.storage migrate "$@"

# Look after what is kept: check [--fix], copy, backup, restore, purge (each with --help)
[group('run')]
storage *arguments: install-deps
    @{{ python }} -m circles.storage "$@"

# End everything that this checkout started, and only that; with -k take the application off the Kind cluster
[arg('program', long='k8s', short='k', value='kuberay/cluster/down.sh', help='take the application off the Kind cluster')]
[arg('force', long, value='--force', help='with --k8s: delete the cluster')]
[group('run')]
clean program=(python + ' -m serve_app stop') force='': install-deps
    @{{ program }} {{ force }}

# Show what runs
[arg('program', long='k8s', short='k', value='kuberay/cluster/status.sh', help='on the Kind cluster')]
[group('watch')]
status program=(python + ' -m serve_app status'): install-deps
    @{{ program }}

# Ask the service on port 8000 whether it is alive and ready
[group('watch')]
health: install-deps
    @{{ python }} -m serve_app health

# Show the log; go on as it grows with -f
[arg('follow', long, short='f', value='--follow', help='go on as it grows')]
[group('watch')]
logs follow='': install-deps
    @{{ python }} -m serve_app logs {{ follow }}

# Show the addresses of what runs
[arg('program', long='k8s', short='k', value='kuberay/cluster/endpoints.sh', help='on the Kind cluster')]
[group('watch')]
endpoints program=(python + ' -m serve_app endpoints'): install-deps
    @{{ program }}

# Deploy an environment to the cluster named by --context: dev, stage or prod [--yes]
[group('cluster')]
deploy *arguments: install-deps
    @kuberay/cluster/deploy.sh "$@"

# Show what the application on the Kind cluster says, or on that of --context; go on as it says more with -f
[arg('follow', long, short='f', value='--follow', help='go on as it says more')]
[arg('context', long, help='another cluster than Kind')]
[group('cluster')]
k8s-logs follow='' context='':
    @kuberay/cluster/logs.sh {{ follow }} {{ if context == '' { '' } else { '--context ' + quote(context) } }}

# Run all tests; with -m only those over HTTP, against the service on port 8000, with -k against the Kind cluster's
[arg('program', long='k8s', short='k', value='kuberay/cluster/up.sh && kuberay/cluster/check.sh', help='those over HTTP, through the gateway of the Kind cluster, which is set up if needed')]
[arg('manual', long, short='m', value='-m "serve and not control" --service-url http://127.0.0.1:8000', help='against a service that already runs')]
[group('check')]
test program=(python + ' -m pytest') manual='': install-deps
    {{ program }} {{ manual }}

# Run the unit tests alone: no Serve, some minutes
[group('check')]
pytest: install-deps
    {{ python }} -m pytest -m "not serve"

# Check form, types and shell scripts
[group('check')]
lint: install-deps
    .venv/bin/ruff check
    .venv/bin/ruff format --check
    .venv/bin/mypy
    .venv/bin/hadolint Dockerfile
    .venv/bin/yamllint --strict .
    .venv/bin/shellcheck justw scripts/*.sh .ci/run kuberay/cluster/*.sh tests/kuberay/*.sh
    scripts/audit.sh

# Write the bill of materials of .venv (CycloneDX) to build/sbom.json, or to the file named
[group('check')]
sbom *arguments: install-deps
    scripts/sbom.sh "$@"

# Kill what a service runs on, again and again, while pictures are uploaded: --kills, --power-cuts, --seed, --json
[group('check')]
chaos *arguments: install-deps
    {{ python }} -m tests.chaos "$@"

# Compare serving with other ways to serve the same detector; --quick, --only, --rounds; sizing, stages, replicas, burst, rows
[group('check')]
bench *arguments: install-deps
    {{ python }} -m evaluation.benchmark "$@"

# Offer a service more than it can take: --seconds, --uploads, --megabytes
[group('check')]
overload *arguments: install-deps
    {{ python }} -m tests.load overload "$@"

# Keep a service busy for long, and watch its memory: --minutes, --load
[group('check')]
soak *arguments: install-deps
    {{ python }} -m tests.load soak "$@"

# Throw hostile files at the service by every door, and judge what comes of it: --files, --seed, --folder, --url, --grpc
[group('check')]
fuzz *arguments: install-deps
    {{ python }} -m tests.hostile.driver "$@"

# Measure the default detector on a dataset; arguments go to `python -m evaluation`
[group('check')]
eval *arguments: install-deps
    {{ python }} -m evaluation "$@"

# Train the learned detector's networks (an hour and more; goes on after a kill); with --quick a toy version in minutes
[group('train')]
train *arguments: install-deps
    {{ python }} -m training "$@"
