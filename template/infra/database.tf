# Dagster's database: runs, events and schedules. It has a private address only, and no password:
# Dagster's account logs in by IAM, through the Cloud SQL Auth Proxy.

variable "database_tier" {
  description = "Machine type of the database."
  type        = string
  default     = "db-custom-1-3840"
}

variable "database_days" {
  description = "Days for which the daily backups of the database are kept."
  type        = number
  default     = 30

  validation {
    condition     = var.database_days >= 7 && var.database_days <= 365
    error_message = "database_days must be 7 to 365: for seven days, the database can be restored to any second."
  }
}

variable "database_protected" {
  description = "Do not let Terraform delete the database. Set it to false, and deploy, before you run `just destroy`."
  type        = bool
  default     = true
}

locals {
  # Google limits names in PostgreSQL, so it leaves out the end of the address.
  database_user = trimsuffix(google_service_account.orchestrator.email, ".gserviceaccount.com")

  database_roles = toset(["roles/cloudsql.client", "roles/cloudsql.instanceUser"])
}

resource "google_sql_database_instance" "dagster" {
  #checkov:skip=CKV_GCP_79:Dagster is tested with this version. Cloud SQL does not move the data to a newer one.
  #checkov:skip=CKV_GCP_108:All connections come from the network of Dagster.
  #checkov:skip=CKV_GCP_110:Dagster's account is the only one that logs in.
  #checkov:skip=CKV_GCP_111:Dagster's statements are many, and change no schema outside of its migrations.
  #checkov:skip=CKV2_GCP_13:As for the statements themselves.
  name                = "${local.name}-dagster"
  region              = var.region
  database_version    = "POSTGRES_17"
  encryption_key_name = var.kms_key
  deletion_protection = var.database_protected

  settings {
    edition                     = "ENTERPRISE"
    tier                        = var.database_tier
    deletion_protection_enabled = var.database_protected # also for gcloud and the console

    ip_configuration {
      ipv4_enabled       = false
      private_network    = google_compute_network.dagster.id
      allocated_ip_range = google_compute_global_address.database.name
      ssl_mode           = "TRUSTED_CLIENT_CERTIFICATE_REQUIRED" # the proxy has such a certificate
    }

    backup_configuration {
      enabled                        = true
      start_time                     = "01:00" # UTC
      location                       = var.region
      point_in_time_recovery_enabled = true
      transaction_log_retention_days = 7

      backup_retention_settings {
        retained_backups = var.database_days
      }
    }

    maintenance_window {
      day          = 7 # Sunday
      hour         = 3 # UTC
      update_track = "stable"
    }

    database_flags {
      name  = "cloudsql.iam_authentication"
      value = "on"
    }

    database_flags {
      name  = "log_checkpoints"
      value = "on"
    }

    database_flags {
      name  = "log_connections"
      value = "on"
    }

    database_flags {
      name  = "log_disconnections"
      value = "on"
    }

    database_flags {
      name  = "log_lock_waits"
      value = "on"
    }

    database_flags {
      name  = "log_min_error_statement"
      value = "error"
    }
  }

  depends_on = [google_service_networking_connection.database, google_kms_crypto_key_iam_member.database_uses_key]
}

# PostgreSQL does not delete a user or a database that is in use: both are deleted with the instance.
resource "google_sql_database" "dagster" {
  name            = "dagster"
  instance        = google_sql_database_instance.dagster.name
  deletion_policy = "ABANDON"
}

# Dagster creates its tables. A user without a role may not.
resource "google_sql_user" "orchestrator" {
  name            = local.database_user
  instance        = google_sql_database_instance.dagster.name
  type            = "CLOUD_IAM_SERVICE_ACCOUNT"
  database_roles  = ["cloudsqlsuperuser"]
  deletion_policy = "ABANDON"
}

# An instance has no roles of its own: roles are granted on the project, with its name as a condition.
resource "google_project_iam_member" "orchestrator_uses_database" {
  for_each = local.database_roles

  project = var.project_id
  role    = each.key
  member  = google_service_account.orchestrator.member

  condition {
    title      = "Only ${google_sql_database_instance.dagster.name}"
    expression = "resource.type == 'sqladmin.googleapis.com/Instance' && resource.name == 'projects/${var.project_id}/instances/${google_sql_database_instance.dagster.name}'"
  }
}

resource "google_kms_crypto_key_iam_member" "database_uses_key" {
  count = var.kms_key == null ? 0 : 1

  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:service-${data.google_project.project.number}@gcp-sa-cloud-sql.iam.gserviceaccount.com"
}
