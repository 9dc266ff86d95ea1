# The two commands of the README, and what they are made of.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.SHELLFLAGS := -euo pipefail -c
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

# The environment of the demo. Not ENV: shells and CI systems have a variable of that name.
DEMO_ENVIRONMENT := dev
# A cluster of your own for the demo: make demo CLUSTER_KUBECONFIG=~/.kube/config [CLUSTER_CONTEXT=name]
CLUSTER_KUBECONFIG ?=
CLUSTER_CONTEXT ?=

ifeq ($(CLUSTER_KUBECONFIG),)
DEMO_NEEDS := cluster client
OUTSIDE := true
DEMO_INVENTORY := -i inventories/$(DEMO_ENVIRONMENT) -i inventories/embedded
else
DEMO_NEEDS := venv
OUTSIDE := false
DEMO_INVENTORY := -i inventories/$(DEMO_ENVIRONMENT) -i inventories/demo -e mlflow_environment_kubeconfig=$(CLUSTER_KUBECONFIG) \
	-e mlflow_environment_context=$(CLUSTER_CONTEXT)
endif

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(DEMO_NEEDS) ## A real Kubernetes on this machine, MLflow on it, proven by a real client
	ansible-playbook playbooks/backing_services.yml $(DEMO_INVENTORY)
	ansible-playbook site.yml $(DEMO_INVENTORY) -e mlflow_verification_outside=$(OUTSIDE)
	ansible-playbook playbooks/credentials.yml $(DEMO_INVENTORY)

.PHONY: test
test: ## Lint, unit tests, and Molecule on a real Kubernetes on this machine
	@rm -rf .cache/junit
	@$(MAKE) --no-print-directory -j2 --output-sync=line lint unit
	@$(MAKE) --no-print-directory molecule
	@python tests/count.py .cache/junit

# The releases that the upgrade is tested from: a few at every run, and in test-full all of them.
UPGRADE_FROM := 3.4.0
UPGRADE_FAULTS_FROM := 3.16.0
UPGRADE_FULL := 2.22.4 3.4.0 3.5.1 3.6.0 3.10.1 3.16.0
# Environments of a run that was cut off would take the room of those that a scenario needs.
REMOVE_LEFTOVERS := ansible-playbook molecule/destroy_environments.yml \
	-i inventories/dev -i inventories/stg -i inventories/prod -i inventories/embedded

.PHONY: test-full
test-full: DATA := test
test-full: MLFLOW_VERSIONS += $(UPGRADE_FULL)
test-full: cluster client servers ## What takes longer: backups, every old release, every fault in the middle of an upgrade
	$(REMOVE_LEFTOVERS)
	MLFLOW_TEST_FULL=true molecule test --scenario-name day_two
	MLFLOW_TEST_FULL=true molecule test --scenario-name environments
	MLFLOW_TEST_FULL=true molecule test --scenario-name embedded_cluster
	MLFLOW_TEST_FULL=true molecule test --scenario-name default
	MLFLOW_TEST_FULL=true molecule test --scenario-name security
	MLFLOW_TEST_FULL=true molecule test --scenario-name integrations
	MLFLOW_TEST_FULL=true molecule test --scenario-name gitops
	MLFLOW_UPGRADE_FROM="$(UPGRADE_FULL)" MLFLOW_TEST_FULL=true molecule test --scenario-name upgrade

.PHONY: lint
lint: venv ## ansible-lint (production profile), ruff and yamllint
	ruff check .
	ruff format --check .
	yamllint --strict .
	ansible-lint --strict

.PHONY: unit
unit: venv ## Unit tests
	pytest --junit-xml=.cache/junit/unit.xml

.PHONY: molecule
molecule: DATA := test
molecule: MLFLOW_VERSIONS += $(UPGRADE_FROM) $(UPGRADE_FAULTS_FROM)
molecule: cluster client servers ## The Molecule scenarios, on the embedded cluster
	$(REMOVE_LEFTOVERS)
	molecule test --scenario-name embedded_cluster
	molecule test --scenario-name default
	molecule test --scenario-name security
	molecule test --scenario-name integrations
	molecule test --scenario-name day_two
	molecule test --scenario-name environments
	molecule test --scenario-name gitops
	MLFLOW_UPGRADE_FROM="$(UPGRADE_FROM)" molecule test --scenario-name upgrade

empty :=
space := $(empty) $(empty)
comma := ,

# Which of its sets of data the cluster runs on: the tests have one of their own.
DATA := demo
# The releases of MLflow that it has images of.
MLFLOW_VERSIONS := 3.17.2
BUILD = roles/embedded_cluster/files/build.py $(addprefix --mlflow-version ,$(MLFLOW_VERSIONS))

.PHONY: cluster
cluster: venv ## Bring the embedded cluster up, or heal it
	@# A build of minutes tells every 15 seconds what it is doing, which a task of Ansible cannot.
	@python3 $(BUILD) --check all || { \
		ansible-playbook playbooks/cluster.yml -i inventories/embedded --tags embedded_cluster_packages && \
		python3 $(BUILD) all; }
	ansible-playbook playbooks/cluster.yml -i inventories/embedded -e embedded_cluster_data=$(DATA) \
		-e '{"embedded_cluster_mlflow_versions": [$(subst $(space),$(comma) ,$(foreach v,$(MLFLOW_VERSIONS),"$(v)"))]}'

.PHONY: cluster-down
cluster-down: venv ## Stop the embedded cluster and leave nothing of it behind but its data and its builds
	ansible-playbook playbooks/cluster_down.yml -i inventories/embedded

.PHONY: cluster-status
cluster-status: venv ## What the embedded cluster is doing
	ansible-playbook playbooks/cluster_status.yml -i inventories/embedded

.PHONY: venv
venv: .venv/.installed

UV := 0.13.8
.venv/.installed: requirements.txt Makefile
	python3 -c 'import ensurepip' 2>/dev/null || (apt-get update -qq && apt-get install -y -qq python3-venv)
	test -x .venv/bin/uv || { python3 -m venv .venv && .venv/bin/pip install -q --disable-pip-version-check uv==$(UV); }
	.venv/bin/uv pip sync -q --python .venv/bin/python --require-hashes requirements.txt
	touch $@

# What a user of MLflow has on a laptop. Apart from the controller's packages: boto3 and kubernetes 37 exclude each other.
.PHONY: client
client: .cache/client/.installed ## An MLflow client outside the cluster, for the verification

.cache/client/.installed: tests/client-requirements.txt | venv
	.venv/bin/uv venv -q --clear --python .venv/bin/python .cache/client
	.venv/bin/uv pip sync -q --python .cache/client/bin/python tests/client-requirements.txt
	touch $@

.PHONY: servers
servers: .cache/servers/.installed ## What the tests start themselves, from OpenBao to a browser
	@python3 $(BUILD) tests
	@# The cache that Argo CD's components share.
	@command -v redis-server > /dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server)
	@command -v chromium > /dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium)

.cache/servers/.installed: tests/servers-requirements.txt | venv
	.venv/bin/uv venv -q --clear --python .venv/bin/python .cache/servers
	.venv/bin/uv pip sync -q --python .cache/servers/bin/python tests/servers-requirements.txt
	touch $@

.PHONY: lock
lock: venv ## Pin what pyproject.toml asks for into requirements.txt
	uv pip compile pyproject.toml --group dev --universal --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-header -q -o requirements.txt

.PHONY: clean
clean: ## Remove what make has put into this checkout
	rm -rf .venv .cache
