# The cloud functions: one for each folder of the project with tasks, built from its bundle, which
# `just bundle` creates.

locals {
  folders = toset([for file in fileset("${path.module}/..", "*/tasks/__init__.py") : dirname(dirname(file))])

  # The names in Google Cloud, by folder.
  function_names = {
    for folder in local.folders :
    folder => folder == "cloud_function" ? var.function_name : "${var.function_name}-${replace(folder, "_", "-")}"
  }

  # The variable of an environment for one function, or that for all of them.
  functions = {
    for folder, name in local.function_names : folder => {
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
}

resource "google_storage_bucket_object" "bundle" {
  for_each = local.functions

  name   = "${each.value.sha256}.zip"
  bucket = google_storage_bucket.sources.name
  source = each.value.bundle
}

# The container images that Google builds from the bundle.
resource "google_artifact_registry_repository" "images" {
  #checkov:skip=CKV_GCP_84:The variable kms_key sets a key.
  repository_id = var.function_name
  description   = "Images of ${join(", ", values(local.function_names))}"
  location      = var.region
  format        = "DOCKER"
  kms_key_name  = var.kms_key

  cleanup_policies {
    id     = "keep-latest"
    action = "KEEP"
    most_recent_versions {
      keep_count = 5
    }
  }

  cleanup_policies {
    id     = "delete-older"
    action = "DELETE"
    condition {
      older_than = "2592000s" # 30 days
    }
  }

  depends_on = [google_project_service.api, google_kms_crypto_key_iam_member.agents_use_key]
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

    environment_variables = {
      FUNCTION_TIMEOUT     = each.value.timeout
      GOOGLE_CLOUD_PROJECT = var.project_id
      MESSAGES_BUCKET      = google_storage_bucket.messages.name
      THREADS              = max(4, each.value.concurrency + 1) # requests that the server handles at once
    }

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
