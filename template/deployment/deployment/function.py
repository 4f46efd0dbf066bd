"""Deploys new code to the functions of an environment: `just deploy-function ENVIRONMENT`.

With the name of a folder, it deploys only that function. CI runs this. It only needs the roles of
the deployer: to upload bundles, and to update functions that exist. At an older commit, it rolls
back.
"""

import sys

from deployment.deployer import deploy_code
from deployment.function_target import FUNCTIONS
from deployment.update import update_function

if __name__ == "__main__":
    sys.exit(deploy_code(FUNCTIONS, update_function))
