# Names for the scripts, which hold the work: each has a head comment and --help.
# Makefile, not more: no target has files of its own, so nothing here is cached.

.DEFAULT_GOAL := help
.PHONY: help demo test test-interop memcheck lint storage-node bench fuzz docs clean-softhsm

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Keyward from nothing: install, build, wrap and unwrap a key with an HSM
	@scripts/demo.sh

test: ## every test; ARGS="..." goes to cargo nextest and runs only those
	@scripts/test.sh $(ARGS)

test-interop: ## Azure's own Python and JavaScript SDKs against the fake vault, and with Keyward
	@scripts/test-interop.sh

memcheck: ## the tests of secret memory, under valgrind (part of make test)
	@scripts/memcheck.sh

lint: ## format, clippy, documentation, dependencies, shell scripts
	@scripts/lint.sh

storage-node: ## the life of a storage node, told; ARGS=--bench measures it
	@examples/storage-node/run.sh $(ARGS)

bench: ## every bench; ARGS="NAME..." only those
	@scripts/bench.sh $(ARGS)

fuzz: ## every fuzz target for FUZZ_SECONDS (60) each; ARGS="TARGET..." only those
	@scripts/fuzz.sh $(ARGS)

docs: ## the crate's documentation
	@scripts/docs.sh

clean-softhsm: ## remove the token that the demo made
	@softhsm/remove.sh
