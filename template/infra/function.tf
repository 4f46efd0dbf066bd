# The cloud functions: one for each folder of the project with tasks, built from its bundle, which
# `just bundle` creates.

variable "function_name" {
  description = "Name of the function in cloud_function/. The names of further functions and the IDs of the service accounts start with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,47}[a-z0-9])?$", var.function_name))
    error_message = "function_name must have at most 49 lowercase letters, digits or hyphens, and start with a letter."
  }
}

variable "functions" {
  description = "For single functions, by the name of their folder: what differs from the variables function_..., and the secrets that the function reads from Secret Manager, as environment variables of the same names."
  type = map(object({
    cpu           = optional(string)
    memory        = optional(string)
    timeout       = optional(number)
    concurrency   = optional(number)
    max_instances = optional(number)
    min_instances = optional(number)
    secrets       = optional(set(string), [])
  }))
  default = {}

  validation {
    condition     = alltrue([for folder in keys(var.functions) : fileexists("${path.module}/../${folder}/tasks/__init__.py")])
    error_message = "Each key of functions must be the folder of a function: one with tasks."
  }

  validation {
    condition     = alltrue([for function in var.functions : coalesce(function.timeout, 1) >= 1 && coalesce(function.timeout, 1) <= 3600])
    error_message = "timeout must be 1 to 3600 seconds."
  }

  validation {
    condition     = alltrue(flatten([for function in var.functions : [for secret in function.secrets : can(regex("^[A-Za-z_][A-Za-z0-9_]*$", secret))]]))
    error_message = "The name of a secret must be possible for an environment variable: letters, digits and underscores."
  }
}

variable "function_timeout" {
  description = "Timeout of a request to a function, in seconds."
  type        = number
  default     = 3600

  validation {
    condition     = var.function_timeout >= 1 && var.function_timeout <= 3600
    error_message = "function_timeout must be 1 to 3600 seconds."
  }
}

variable "function_runtime" {
  description = "Python version of the functions: python313 or python314."
  type        = string
  default     = "python313"

  validation {
    condition     = contains(["python313", "python314"], var.function_runtime)
    error_message = "function_runtime must be python313 or python314."
  }
}

variable "function_ingress" {
  description = "Where requests may come from: ALLOW_ALL, ALLOW_INTERNAL_ONLY or ALLOW_INTERNAL_AND_GCLB. IAM checks each request in any case. Dagster must be able to reach the function."
  type        = string
  default     = "ALLOW_ALL"

  validation {
    condition     = contains(["ALLOW_ALL", "ALLOW_INTERNAL_ONLY", "ALLOW_INTERNAL_AND_GCLB"], var.function_ingress)
    error_message = "function_ingress must be ALLOW_ALL, ALLOW_INTERNAL_ONLY or ALLOW_INTERNAL_AND_GCLB."
  }
}

variable "function_memory" {
  description = "Memory of one instance, such as 512Mi or 4Gi."
  type        = string
  default     = "1Gi"
}

variable "function_cpu" {
  description = "CPUs of one instance. Must be at least 1 if function_concurrency is more than 1."
  type        = string
  default     = "1"
}

variable "function_concurrency" {
  description = "Maximum concurrent requests per instance. With 1, a request has the whole memory of its instance."
  type        = number
  default     = 1

  validation {
    condition     = var.function_concurrency >= 1 && var.function_concurrency <= 1000
    error_message = "function_concurrency must be 1 to 1000."
  }
}

variable "function_max_instances" {
  description = "Maximum number of instances. Multiplied by function_concurrency, it limits the requests in flight. Google rejects further requests, and Dagster retries them for a minute."
  type        = number
  default     = 10
}

variable "function_min_instances" {
  description = "Minimum number of instances. Idle instances are billed."
  type        = number
  default     = 0
}

variable "create_builds_bucket" {
  description = "False if the bucket gcf-v2-sources-NUMBER-REGION exists, because the project has, or had, other functions in this region. Terraform then only grants the build account its role on it."
  type        = bool
  default     = true
}

locals {
  # The variable of an environment for one function, or that for all of them.
  functions = {
    for folder, name in local.names : folder => {
      name          = name
      bundle        = "${path.module}/../build/${folder}.zip"
      sha256        = filesha256("${path.module}/../build/${folder}.zip")
      cpu           = try(coalesce(var.functions[folder].cpu), var.function_cpu)
      memory        = try(coalesce(var.functions[folder].memory), var.function_memory)
      timeout       = try(coalesce(var.functions[folder].timeout), var.function_timeout)
      concurrency   = try(coalesce(var.functions[folder].concurrency), var.function_concurrency)
      max_instances = try(coalesce(var.functions[folder].max_instances), var.function_max_instances)
      min_instances = try(coalesce(var.functions[folder].min_instances), var.function_min_instances)
      secrets       = try(var.functions[folder].secrets, [])
    }
  }

  # One item for each secret of each function.
  function_secrets = merge([
    for folder, function in local.functions :
    { for secret in function.secrets : "${folder}:${secret}" => { folder = folder, secret = secret } }
  ]...)

  builds_bucket = "gcf-v2-sources-${data.google_project.project.number}-${var.region}"
}

resource "google_storage_bucket_object" "bundle" {
  for_each = local.functions

  name   = "${each.value.sha256}.zip"
  bucket = google_storage_bucket.sources.name
  source = each.value.bundle
}

resource "google_cloudfunctions2_function" "function" {
  #checkov:skip=CKV_GCP_124:Dagster may run anywhere, so IAM controls access. The variable function_ingress restricts it.
  for_each = local.functions

  name        = each.value.name
  description = "Runs the tasks of Dagster assets."
  location    = var.region

  # What is deployed, for `just deploy-function`, which skips a bundle that is deployed already.
  # A label has at most 63 characters.
  labels = {
    bundle = substr(each.value.sha256, 0, 63)
  }

  build_config {
    runtime           = var.function_runtime
    entry_point       = "main"
    service_account   = google_service_account.build.name
    docker_repository = google_artifact_registry_repository.images.id

    # Terraform does not see the source that CI has deployed, but it does see this variable. If it
    # differs, Terraform deploys its own source, together with the label.
    environment_variables = {
      BUNDLE = each.value.sha256
    }

    source {
      storage_source {
        bucket = google_storage_bucket.sources.name
        object = google_storage_bucket_object.bundle[each.key].name
      }
    }
  }

  # There is no `kms_key_name`: with one, Google would build the function from another bucket, whose
  # name contains a hash of the key, and which the build account could not read.

  service_config {
    service_account_email            = google_service_account.function[each.key].email
    ingress_settings                 = var.function_ingress
    timeout_seconds                  = each.value.timeout
    available_memory                 = each.value.memory
    available_cpu                    = each.value.cpu
    max_instance_request_concurrency = each.value.concurrency
    max_instance_count               = each.value.max_instances
    min_instance_count               = each.value.min_instances
    direct_vpc_egress                = var.vpc == null ? null : "VPC_EGRESS_ALL_TRAFFIC"

    dynamic "direct_vpc_network_interface" {
      for_each = var.vpc[*]
      content {
        network    = direct_vpc_network_interface.value.network
        subnetwork = direct_vpc_network_interface.value.subnetwork
      }
    }

    environment_variables = merge(var.environment_variables, {
      FUNCTION_TIMEOUT     = each.value.timeout
      GOOGLE_CLOUD_PROJECT = var.project_id
      MESSAGES_BUCKET      = google_storage_bucket.messages.name
      THREADS              = max(4, each.value.concurrency + 1) # requests that the server handles at once
    })

    dynamic "secret_environment_variables" {
      for_each = each.value.secrets
      content {
        key        = secret_environment_variables.value
        project_id = var.project_id
        secret     = secret_environment_variables.value
        version    = "latest"
      }
    }
  }

  lifecycle {
    precondition {
      condition     = length(each.value.name) <= 49
      error_message = "${each.value.name} is too long: Google Cloud allows 49 characters. Shorten the name of the folder ${each.key}."
    }
  }

  depends_on = [time_sleep.grants]
}

# New accounts and roles take a minute or more to become effective everywhere, and a build that
# starts earlier fails. Terraform waits when it creates them, and not later.
resource "time_sleep" "grants" {
  create_duration = "90s"

  triggers = {
    functions = join(" ", keys(local.functions))
    secrets   = join(" ", keys(local.function_secrets))
  }

  depends_on = [
    google_artifact_registry_repository_iam_member.build_writes_images,
    google_kms_crypto_key_iam_member.agents_use_key,
    google_project_iam_member.build_writes_logs,
    google_secret_manager_secret_iam_member.function_reads_secret,
    google_storage_bucket_iam_member.build_reads_sources,
    google_storage_bucket_iam_member.function_creates_messages,
    google_storage_bucket_iam_member.function_uses_lake,
  ]
}

resource "google_service_account" "function" {
  for_each = local.functions

  # The hash keeps two names apart that begin alike.
  account_id   = each.key == local.first_folder ? "${local.account_prefix}-function" : "${trimsuffix(substr(each.value.name, 0, 23), "-")}-${substr(sha1(each.value.name), 0, 6)}"
  display_name = "Runs the cloud function ${each.value.name}"

  depends_on = [google_project_service.api]
}

resource "google_storage_bucket_iam_member" "function_creates_messages" {
  for_each = local.functions

  bucket = google_storage_bucket.messages.name
  role   = "roles/storage.objectCreator" # can neither read nor overwrite messages
  member = google_service_account.function[each.key].member
}

resource "google_storage_bucket_iam_member" "function_uses_lake" {
  for_each = local.functions

  bucket = google_storage_bucket.lake.name
  role   = "roles/storage.objectUser"
  member = google_service_account.function[each.key].member
}

resource "google_secret_manager_secret_iam_member" "function_reads_secret" {
  for_each = local.function_secrets

  secret_id = each.value.secret
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.function[each.value.folder].member

  depends_on = [google_project_service.api]
}

# A second-generation function is a Cloud Run service, and Cloud Run checks who may call it.
resource "google_cloud_run_v2_service_iam_member" "orchestrator_calls_function" {
  for_each = local.functions

  name     = google_cloudfunctions2_function.function[each.key].name
  location = var.region
  role     = "roles/run.invoker"
  member   = google_service_account.orchestrator.member
}

# Google copies the source code to a bucket of this name and builds the function from it. Google
# would create the bucket at the first deployment in a project, but would not let the build account
# read it. Terraform creates the bucket first, in order to grant that role. All functions of the
# project in this region share the bucket, so it is not deleted unless it is empty.
resource "google_storage_bucket" "builds" {
  #checkov:skip=CKV_GCP_62:Only Google writes to it, and only the build account reads it.
  count = var.create_builds_bucket ? 1 : 0

  name                        = local.builds_bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  versioning {
    enabled = true
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      num_newer_versions = 3
      with_state         = "ARCHIVED"
    }
  }

  dynamic "encryption" {
    for_each = var.kms_key[*]
    content {
      default_kms_key_name = encryption.value
    }
  }

  depends_on = [google_project_service.api, google_kms_crypto_key_iam_member.agents_use_key]
}

resource "google_storage_bucket_iam_member" "build_reads_sources" {
  bucket = local.builds_bucket
  role   = "roles/storage.objectViewer"
  member = google_service_account.build.member

  depends_on = [google_storage_bucket.builds]
}
