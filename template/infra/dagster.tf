# What Dagster needs wherever it runs, besides its database: the bucket for what steps print, and
# environment variables of your own.

variable "logs_bucket" {
  description = "Name of the bucket for what the steps of runs print (DAGSTER_LOGS_BUCKET), without gs://."
  type        = string

  validation {
    condition     = !contains([var.lake_bucket, var.messages_bucket, var.sources_bucket], var.logs_bucket)
    error_message = "logs_bucket must differ from the other buckets, because logs are deleted after logs_days."
  }
}

variable "logs_days" {
  description = "Days after which logs of steps are deleted. Dagster keeps its own events, which include the log lines of tasks."
  type        = number
  default     = 90

  validation {
    condition     = var.logs_days >= 1
    error_message = "logs_days must be at least 1."
  }
}

variable "dagster_environment_variables" {
  description = "More environment variables of Dagster's code location and of the runs, by their names, such as OTEL_SERVICE_NAME. They are not secret."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.dagster_environment_variables) : can(regex("^[A-Za-z_][A-Za-z0-9_]*$", name))])
    error_message = "The name of an environment variable has only letters, digits and underscores."
  }

  # They are lines of a file, which Docker, kubectl and python-dotenv read in different ways.
  validation {
    condition     = alltrue([for value in values(var.dagster_environment_variables) : can(regex("^[^\r\n\"'#$\\\\]*$", value)) && value == trimspace(value)])
    error_message = "A value must be one line, without spaces at its ends, quotes, #, $ and backslashes."
  }
}

resource "google_storage_bucket" "logs" {
  #checkov:skip=CKV_GCP_62:Access logs would be larger than the logs of steps.
  #checkov:skip=CKV_GCP_78:Logs are written by one run, and not changed after it.
  name                        = var.logs_bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true # nothing depends on logs

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      age = var.logs_days
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

# While a step runs, Dagster replaces what it has uploaded, so it must be allowed to delete.
resource "google_storage_bucket_iam_member" "orchestrator_writes_logs" {
  bucket = google_storage_bucket.logs.name
  role   = "roles/storage.objectUser"
  member = google_service_account.orchestrator.member
}
